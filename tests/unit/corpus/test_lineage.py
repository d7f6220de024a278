"""Groups of records by one rank of their lineages."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_hyena.corpus.lineage import RANKS, ancestor
from megatron_hyena.corpus.options import load_options
from megatron_hyena.corpus.records import Counts, Record
from megatron_hyena.corpus.splitting import SplitRules, naive_splitting, split_records
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError

COLI = "d__Bacteria;p__Pseudomonadota;c__Gamma;o__Entero;f__Entero;g__Escherichia;s__E. coli"
PLAIN = "Bacteria; Pseudomonadota;Gamma;Escherichia;Escherichia  coli"


@pytest.mark.parametrize(
    ("taxon", "rank", "expected"),
    [
        (COLI, "", COLI),
        (COLI, "domain", "d__Bacteria"),
        (COLI, "genus", COLI.rpartition(";")[0]),
        (COLI, "species", COLI),
        (COLI + ";", "-1", COLI.rpartition(";")[0]),
        ("k__Fungi;g__Vibrio", "domain", "k__Fungi"),
        ("d__Eukaryota;k__Fungi;g__Vibrio", "domain", "d__Eukaryota"),
        ("d__Eukaryota;k__Fungi;g__Vibrio", "kingdom", "d__Eukaryota;k__Fungi"),
        (PLAIN, "", "Bacteria;Pseudomonadota;Gamma;Escherichia;Escherichia coli"),
        (PLAIN, "1", "Bacteria"),
        (PLAIN, "4", "Bacteria;Pseudomonadota;Gamma;Escherichia"),
        (PLAIN, "5", "Bacteria;Pseudomonadota;Gamma;Escherichia;Escherichia coli"),
        (PLAIN, "-1", "Bacteria;Pseudomonadota;Gamma;Escherichia"),
        (PLAIN, "-4", "Bacteria"),
    ],
)
def test_a_lineage_is_cut_at_its_rank(taxon, rank, expected):
    assert ancestor(taxon, rank, "x") == expected


@pytest.mark.parametrize(
    ("taxon", "rank", "message"),
    [
        (PLAIN, "genus", r"sample 'x' .* no level is marked as its genus, such as g__NAME"),
        ("d__Bacteria;g__;s__", "genus", "no level is marked as its genus"),
        (PLAIN, "6", r"of 5 levels, too few for taxon_rank=6; give it its whole lineage"),
        (PLAIN, "-5", "of 5 levels, too few for taxon_rank=-5"),
        ("d__Bacteria;p__;c__Gamma", "2", "whose level 2, which taxon_rank=2 .* has no name"),
    ],
)
def test_a_lineage_that_does_not_tell_is_named(taxon, rank, message):
    with pytest.raises(UserError, match=message):
        ancestor(taxon, rank, "x")


def record(sample: str, taxon: str, hashes: tuple[int, ...] = ()) -> Record:
    kind, stretches = SequenceType.DNA, ((0, 1000),)
    counts, sketch = Counts(1000), np.array(hashes, dtype=np.uint64)
    return Record(sample, "c", taxon, kind, 1000, sample, stretches, counts, sketch)


def many() -> list[Record]:
    """Ten species of each of two genera of each of 20 families, without marks."""
    return [
        record(
            f"s{f}-{g}-{s}", f"Bacteria;Family{f};Genus{g};species {s}", (1000 * f + 100 * g + s,)
        )
        for f in range(20)
        for g in range(2)
        for s in range(10)
    ]


@pytest.mark.parametrize(("rank", "levels"), [("3", 3), ("-1", 3), ("2", 2), ("", 4), ("-2", 2)])
@pytest.mark.parametrize("by", ["taxon", "cluster"])
def test_records_of_one_ancestor_are_in_one_split(rank, levels, by):
    rules = SplitRules(by, 0.2, 0.2, taxa_together=by == "cluster", taxon_rank=rank)
    records = many()
    result = split_records(records, rules)
    splits: dict[str, set[str]] = {}
    taxa = {one.name: one.taxon for one in records}
    for stretch in result.stretches:
        above = ";".join(taxa[stretch.contig].split(";")[:levels])
        splits.setdefault(above, set()).add(stretch.split)
    assert len(splits) == len(result.groups) == {2: 20, 3: 40, 4: 400}[levels]
    assert all(len(some) == 1 for some in splits.values())
    assert result.bases() == {"train": 240_000, "valid": 80_000, "test": 80_000}
    naive = naive_splitting(records, rules)
    assert len(naive.groups) == len(records)


def test_one_genus_name_in_two_families_is_two_groups():
    records = [
        record("a", "B;F1;Bacillus;x"),
        record("b", "B;F2;Bacillus;y"),
        record("c", "B;F3;G;z"),
    ]
    groups = split_records(records, SplitRules("taxon", 0.34, 0, taxon_rank="3")).groups
    assert [group.name for group in groups] == ["B;F1;Bacillus", "B;F2;Bacillus", "B;F3;G"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["splits.by=taxon", "splits.taxon_rank=tribe"], "taxon_rank is 'tribe'; give one of dom"),
        (["splits.by=taxon", "splits.taxon_rank=0"], "taxon_rank is '0'"),
        (["splits.by=contig", "splits.taxon_rank=genus"], "taxon_rank is for splits by taxon"),
        (["splits.taxon_rank=genus"], "or with taxa_together, not by cluster; remove it"),
    ],
)
def test_options_that_mean_nothing_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_options(None, overrides)


def test_ranks_and_numbers_can_be_given_on_the_command_line():
    for rank in (*RANKS, "6", "-1"):
        options = load_options(None, ["splits.by=taxon", f"splits.taxon_rank={rank}"])
        assert options.splits.taxon_rank == rank
