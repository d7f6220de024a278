"""Records that say again what another one says: exact duplicates, and near ones by their sketches.

Of duplicates the longest is kept, of equally long ones the first by name: what is kept depends on
the records, and on no order of files or jobs.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_hyena.corpus.homology import HashIndex
from megatron_hyena.corpus.records import Record
from megatron_hyena.corpus.sketch import k_of, least_shared, similarity

Duplicates = dict[int, tuple[int, float]]
"""Number of a record to leave out → the record kept in its place, and how similar they are."""


def preference(record: Record) -> tuple[int, str, str]:
    """Sorts records by how much they are to be kept: most bases left, then names."""
    return (-record.counts.bases, record.sample, record.contig)


def exact_duplicates(records: Sequence[Record]) -> Duplicates:
    """Records of one type and one sequence, or its reverse complement in DNA, but the one kept."""
    kept: dict[tuple[int, str], int] = {}
    found: Duplicates = {}
    for i in _by_preference(records):
        first = kept.setdefault((records[i].type, records[i].sha256), i)
        if first != i:
            found[i] = (first, 1.0)
    return found


def near_duplicates(records: Sequence[Record], wanted: float) -> Duplicates:
    """Records that are contained, to a similarity of `wanted` or more, in one that is kept.

    Taken in the order of `preference`, a record is kept unless so much of its sketch is in that of
    a record kept before; it is a duplicate of the first such. Nothing is a duplicate of a record
    that is left out itself, and a record without hashes is no duplicate.
    """
    order = _by_preference(records)
    rank = {number: place for place, number in enumerate(order)}
    index = HashIndex([record.sketch for record in records])
    kept: set[int] = set()
    found: Duplicates = {}
    for i in order:
        k, size = k_of(records[i].type), len(records[i].sketch)
        least = least_shared(size, wanted, k)
        others = [j for j in index.sharing(i, least).tolist() if j in kept]
        for j in sorted(others, key=rank.__getitem__):
            both = index.shared(i, j)
            if both >= least:
                found[i] = (j, similarity(both / size, k))
                break
        else:
            kept.add(i)
    return found


def _by_preference(records: Sequence[Record]) -> list[int]:
    return sorted(range(len(records)), key=lambda i: preference(records[i]))
