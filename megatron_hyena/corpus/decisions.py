"""Which records of a corpus are kept, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from megatron_hyena.corpus.curation import CurationRules
from megatron_hyena.corpus.duplicates import Duplicates, exact_duplicates, near_duplicates
from megatron_hyena.corpus.homology import check_sketches
from megatron_hyena.corpus.records import Decision, Record
from megatron_hyena.errors import UserError

EXCLUDED, SHORT, EXACT, NEAR = "excluded taxon", "too short", "exact duplicate", "near duplicate"
REASONS = (EXCLUDED, SHORT, EXACT, NEAR)
"""In the order in which they are looked for: what is dropped for one is not asked for the next."""

_RANK = re.compile("^[a-z]{1,2}__")
"""What some taxonomies write before a name to tell its rank, such as g__ for a genus."""


def decide(records: Sequence[Record], rules: CurationRules) -> list[Decision]:
    """A decision for each record, in their order; which is kept depends on no order.

    Raises UserError for two records of one name, for an excluded taxon that no record has, and
    where near duplicates are asked for and no record has a sketch.
    """
    _check_names(records)
    if rules.near_duplicates > 0:
        check_sketches(records, "near duplicates")
    reasons = {i: EXCLUDED for i in excluded(records, rules.exclude_taxa)}
    for i, record in enumerate(records):
        if not record.stretches:
            reasons.setdefault(i, SHORT)
    instead: Duplicates = {}
    steps: list[tuple[str, bool, Callable[[list[Record]], Duplicates]]] = [
        (EXACT, rules.exact_duplicates, exact_duplicates),
        (
            NEAR,
            rules.near_duplicates > 0,
            lambda left: near_duplicates(left, rules.near_duplicates),
        ),
    ]
    for reason, wanted, search in steps:
        left = [i for i in range(len(records)) if i not in reasons]
        for a, (b, alike) in search([records[i] for i in left]).items() if wanted else ():
            reasons[left[a]] = reason
            instead[left[a]] = (left[b], alike)
    for copy, (original, _) in instead.items():  # of an original that has a near one itself
        instead[copy] = instead.get(original, instead[copy])
    return [_decision(records, i, reasons.get(i, ""), instead) for i in range(len(records))]


def _decision(records: Sequence[Record], i: int, reason: str, instead: Duplicates) -> Decision:
    original, alike = instead.get(i, (None, 0.0))
    name = "" if original is None else records[original].name
    return Decision(records[i].name, not reason, reason, name, alike, records[i].counts.bases)


def _check_names(records: Sequence[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.name in seen:
            raise UserError(f"two records are named {record.name}; rename one of the samples")
        seen.add(record.name)


def excluded(records: Sequence[Record], taxa: Sequence[str]) -> list[int]:
    """Numbers of the records whose taxon, or a level of it, is one of `taxa`.

    Upper and lower case are one, and a prefix that tells the rank (`g__`) may be left out. Raises
    UserError for a name that no record has.
    """
    levels = {taxon: _levels(taxon) for taxon in {record.taxon for record in records}}
    wanted = {name: _plain(name) for name in taxa}
    known = set[str]().union(*levels.values())
    for name, plain in wanted.items():
        if plain not in known:
            raise _no_such_taxon(name, plain, known)
    out = set(wanted.values())
    return [i for i, record in enumerate(records) if levels[record.taxon] & out]


def _no_such_taxon(name: str, plain: str, known: set[str]) -> UserError:
    near = get_close_matches(plain, sorted(known), n=1, cutoff=0.0)
    hint = f"the nearest is {near[0]!r}" if near else "no sample has a taxon"
    return UserError(
        f"exclude_taxa names {name!r}, which no sample is of; {hint}: correct or remove it"
    )


def _levels(taxon: str) -> set[str]:
    names = {_plain(level) for level in (*taxon.split(";"), taxon)}
    return names - {""}


def _plain(name: str) -> str:
    return _RANK.sub("", " ".join(name.casefold().split()))
