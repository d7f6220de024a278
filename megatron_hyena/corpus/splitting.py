"""Train, valid and test of a corpus: by position, or by groups that stay whole.

By position every contig is cut as `splits.py` says. By contig, taxon or cluster the records are in
groups, and a group goes whole to one split. Groups with a member whose split the sample sheet
fixes go there. The others are taken in the order of a hash of their names; each goes to valid or
test, to the one that lacks more bases, if it fits into what is lacking there, and else to train.
So the shares come out as asked to within the size of a group, a large group never fills a held-out
split alone, and the order of samples, files and jobs changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from megatron_hyena.corpus.homology import check_sketches, clusters
from megatron_hyena.corpus.lineage import ancestor, check_rank
from megatron_hyena.corpus.records import Record
from megatron_hyena.corpus.splits import DEFAULT_GAP, SPLITS, SplitRule, Stretch, split_contigs
from megatron_hyena.data.store import Contig
from megatron_hyena.errors import UserError

WAYS = ("position", "contig", "taxon", "cluster")


@dataclass(frozen=True)
class SplitRules:
    """How a corpus is divided. Raises UserError for values that are out of range."""

    by: str = "cluster"
    """`position`, `contig`, `taxon` or `cluster`."""
    valid_fraction: float = 0.05
    """Of the bases."""
    test_fraction: float = 0.05
    """Of the bases."""
    gap: int = DEFAULT_GAP
    """By position: bases left out between two splits of a contig."""
    cluster_similarity: float = 0.9
    """By cluster: records so similar, 0 to 1, are never in two splits. Strains of a bacterium are
    above 0.94, genera below 0.75; below 0.7 chance alone makes one cluster of many proteins."""
    taxa_together: bool = False
    """By cluster: nor are records of one taxon."""
    taxon_rank: str = ""
    """What of a lineage is the taxon, by taxon or with taxa_together: `genus` or another rank, down
    to the level that is marked so (`g__Vibrio`); a number, that many levels from the top; below 0,
    all but so many at the end (-1: without the species); empty: all of it."""
    seed: int = 0
    """Another one gives other groups to valid and test."""

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise UserError(f"splits are by {self.by!r}; give one of {', '.join(WAYS)}")
        if not 0 < self.cluster_similarity <= 1:
            raise UserError(
                f"cluster_similarity is {self.cluster_similarity}; give a number above 0, up to 1"
            )
        if self.taxa_together and self.by != "cluster":
            raise UserError(f"taxa_together is for splits by cluster, not by {self.by}; remove it")
        check_rank(self.taxon_rank)
        if self.taxon_rank and not (self.by == "taxon" or self.taxa_together):
            raise UserError(
                f"taxon_rank is for splits by taxon, or with taxa_together, not by {self.by}; "
                "remove it"
            )
        self.rule  # noqa: B018 - its own checks

    @property
    def rule(self) -> SplitRule:
        """For contigs that are cut by position."""
        return SplitRule(self.valid_fraction, self.test_fraction, self.gap)


@dataclass(frozen=True, slots=True)
class Group:
    """Records that stay in one split."""

    name: str
    """Of its taxon, or of the first of its records by name."""
    members: tuple[int, ...]
    """Numbers of its records."""
    bases: int
    split: str
    fixed: bool = False
    """Whether the split is the sample sheet's."""


@dataclass(frozen=True)
class Splitting:
    """The result: what of each record belongs to which split."""

    stretches: tuple[Stretch, ...]
    """In the order of the records and of positions; `contig` is SAMPLE/CONTIG."""
    groups: tuple[Group, ...] = ()
    """In the order of their names; by position there are none."""

    def bases(self) -> dict[str, int]:
        """Bases of each split."""
        totals = dict.fromkeys(SPLITS, 0)
        for stretch in self.stretches:
            totals[stretch.split] += stretch.end - stretch.start
        return totals


def split_records(
    records: Sequence[Record], rules: SplitRules, fixed: Mapping[str, str] | None = None
) -> Splitting:
    """Divide what is left of `records`, those that are kept.

    `fixed`: sample → train, valid or test, for samples whose split is given. Raises UserError for
    a fixed split that is none, for two of them in one group, for a record without taxon where taxa
    are to stay together, where splits are by cluster and no record has a sketch, and where a split
    that is asked for gets no bases.
    """
    fixed = {sample: split for sample, split in (fixed or {}).items() if split}
    _check_fixed(fixed)
    if rules.by == "position":
        result = Splitting(tuple(_by_position(records, rules, fixed)))
    else:
        groups = _assign(records, _groups(records, rules), rules, fixed)
        result = _whole(records, groups)
    _check_bases(result, rules)
    return result


def naive_splitting(records: Sequence[Record], rules: SplitRules) -> Splitting:
    """Every contig for itself, whatever it shares with others, in shares as `rules` asks.

    What a report on leakage compares with. Fixed splits do not count, and a split may stay empty.
    """
    alone = replace(rules, by="contig", taxa_together=False, taxon_rank="")
    groups = _assign(records, _groups(records, alone), alone, {})
    return _whole(records, groups)


def _whole(records: Sequence[Record], groups: Sequence[Group]) -> Splitting:
    splits = {i: group.split for group in groups for i in group.members}
    stretches = (
        Stretch(splits[i], record.name, start, end)
        for i, record in enumerate(records)
        for start, end in record.stretches
    )
    return Splitting(tuple(stretches), tuple(groups))


def _by_position(
    records: Sequence[Record], rules: SplitRules, fixed: Mapping[str, str]
) -> Iterator[Stretch]:
    """What is left of each record within the stretches of the whole contig's splits."""
    for record in records:
        if record.sample in fixed:
            cuts = [Stretch(fixed[record.sample], record.name, 0, record.length)]
        else:
            cuts = split_contigs([Contig(record.name, 0, record.length)], rules.rule)
        for cut in cuts:
            for start, end in record.stretches:
                begin, stop = max(start, cut.start), min(end, cut.end)
                if begin < stop:
                    yield Stretch(cut.split, record.name, begin, stop)


def _groups(records: Sequence[Record], rules: SplitRules) -> dict[str, list[int]]:
    """Name of a group → numbers of its records."""
    if rules.by == "taxon":
        return _together(_taxa(records, rules, "by taxon"))
    if rules.by == "contig":
        return _together([record.name for record in records])
    check_sketches(records, "splits by cluster")
    joined = clusters(records, rules.cluster_similarity)
    if rules.taxa_together:
        for members in _together(_taxa(records, rules, "with taxa_together")).values():
            for i in members:
                joined.join(members[0], i)
    together: dict[int, list[int]] = {}
    for i in range(len(records)):
        together.setdefault(joined.first(i), []).append(i)
    return {min(records[i].name for i in group): group for group in together.values()}


def _together(keys: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    return groups


def _taxa(records: Sequence[Record], rules: SplitRules, when: str) -> list[str]:
    """What keeps each record together with others; of each sample's taxon worked out once."""
    known: dict[tuple[str, str], str] = {}
    for record in records:
        key = (record.sample, record.taxon)
        if key not in known:
            if not record.taxon.strip():
                raise UserError(
                    f"sample {record.sample!r} has no taxon, which splits {when} need; give it "
                    "one, or split otherwise"
                )
            known[key] = ancestor(record.taxon, rules.taxon_rank, record.sample)
    return [known[record.sample, record.taxon] for record in records]


def _assign(
    records: Sequence[Record],
    groups: Mapping[str, Sequence[int]],
    rules: SplitRules,
    fixed: Mapping[str, str],
) -> list[Group]:
    """Every group in its split, in the order of their names."""
    sizes = {n: sum(records[i].counts.bases for i in group) for n, group in groups.items()}
    splits = {name: _fixed_split(records, name, group, fixed) for name, group in groups.items()}
    given = {name for name, split in splits.items() if split}
    total = sum(sizes.values())
    lacking = {"test": total * rules.test_fraction, "valid": total * rules.valid_fraction}
    for name in given:
        if splits[name] in lacking:
            lacking[splits[name]] -= sizes[name]
    for name in sorted(groups.keys() - given, key=lambda name: (_place(name, rules.seed), name)):
        wanting = max(lacking, key=lacking.__getitem__)
        fits = sizes[name] <= lacking[wanting]
        splits[name] = wanting if fits else "train"
        if fits:
            lacking[wanting] -= sizes[name]
    return [
        Group(name, tuple(groups[name]), sizes[name], splits[name], name in given)
        for name in sorted(groups)
    ]


def _place(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _fixed_split(
    records: Sequence[Record], name: str, group: Sequence[int], fixed: Mapping[str, str]
) -> str:
    """The split that the sheet gives to members of a group, or nothing."""
    samples = sorted({records[i].sample for i in group} & fixed.keys())
    for sample in samples[1:]:
        first = samples[0]
        if fixed[sample] != fixed[first]:
            raise UserError(
                f"sample {first!r} is fixed to {fixed[first]} and sample {sample!r} to "
                f"{fixed[sample]}, but both have records in the group of {name!r}, which stays "
                "together; give them one split, or divide by other groups"
            )
    return fixed[samples[0]] if samples else ""


def _check_fixed(fixed: Mapping[str, str]) -> None:
    for sample, split in fixed.items():
        if split not in SPLITS:
            raise UserError(
                f"sample {sample!r} is fixed to {split!r}; use one of {', '.join(SPLITS)}"
            )


def _check_bases(result: Splitting, rules: SplitRules) -> None:
    bases = result.bases()
    total = sum(bases.values())
    fractions = {"valid": rules.valid_fraction, "test": rules.test_fraction}
    for split in rules.rule.splits:
        if bases[split] == 0:
            asked = f"{split} would get none of the {total} bases"
            if rules.by == "position":
                raise UserError(f"{asked}; lower gap, which is {rules.gap}, or its fraction")
            groups = [group for group in result.groups if not group.fixed]
            smallest = min((group.bases for group in groups), default=0)
            share = total * fractions.get(split, 0.0)
            raise UserError(
                f"{asked}: by {rules.by} there are {len(groups)} groups without a fixed split, the "
                f"smallest of {smallest} bases, and its share is {share:.0f}; "
                "change the fractions, or divide by other groups"
            )
