"""Which records are alike: an index from hashes to records, and clusters of similar records.

Comparing all pairs of a million records is out of reach, and most pairs share nothing. Two records
of which at least `least` hashes are shared must share one of the n - least + 1 rarest of the n
hashes of either (prefix filtering, Chaudhuri et al. 2006, doi:10.1109/ICDE.2006.9): only those are
looked up in the index, so that repeats, which many records have, are seldom followed. What is found
so is compared hash by hash: the results are those of all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from megatron_hyena.corpus.records import Hashes, Record
from megatron_hyena.corpus.sketch import k_of, least_shared, shared
from megatron_hyena.errors import UserError

Numbers = npt.NDArray[np.int64]


class HashIndex:
    """The sketches of `records`, from both ends: hashes of a record, records of a hash.

    Takes about 40 bytes of memory for each hash of each record.
    """

    def __init__(self, sketches: Sequence[Hashes]) -> None:
        self._sketches = sketches
        sizes = np.array([len(sketch) for sketch in sketches], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        every = np.concatenate([np.empty(0, dtype=np.uint64), *sketches])
        _, self._number, self._records_of = np.unique(
            every, return_inverse=True, return_counts=True
        )
        order = np.argsort(self._number, kind="stable")
        self._owners = np.repeat(np.arange(len(sizes)), sizes)[order]
        self._places = np.concatenate([[0], np.cumsum(self._records_of)])

    def sharing(self, record: int, least: int) -> Numbers:
        """Numbers of the other records that may share `least` (1 or more) hashes with `record`.

        In order. All that do are among them; compare to know.
        """
        numbers = self._number[self._offsets[record] : self._offsets[record + 1]]
        looked_up = len(numbers) - least + 1
        if looked_up < 1:
            return np.empty(0, dtype=np.int64)
        if looked_up < len(numbers):
            rarity = self._records_of[numbers]
            numbers = numbers[np.argsort(rarity, kind="stable")[:looked_up]]
        numbers = numbers[self._records_of[numbers] > 1]
        found = np.unique(self._owners[_ranges(self._places[numbers], self._records_of[numbers])])
        return found[found != record]

    def shared(self, a: int, b: int) -> int:
        """How many hashes the records share."""
        return shared(self._sketches[a], self._sketches[b])


def _ranges(starts: Numbers, counts: Numbers) -> Numbers:
    """start, start + 1 … of each start, as many as its count, behind one another."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def similar_pairs(
    records: Sequence[Record],
    wanted: float,
    known: Callable[[int, int], bool] = lambda a, b: False,
) -> Iterator[tuple[int, int]]:
    """Numbers of records that are similar to `wanted` or more, each pair once.

    The similarity is that of the maximum containment, of the smaller sketch in the larger one: a
    contig is similar to the genome that it is part of. A record without hashes is similar to none.
    Pairs that are `known`, when it is their turn, are not compared.
    """
    sizes = np.array([len(record.sketch) for record in records], dtype=np.int64)
    index = HashIndex([record.sketch for record in records])
    for i, record in enumerate(records):
        if sizes[i]:
            least = least_shared(int(sizes[i]), wanted, k_of(record.type))
            others = index.sharing(i, least)
            larger = (sizes[others] > sizes[i]) | ((sizes[others] == sizes[i]) & (others > i))
            for j in others[larger].tolist():
                if not known(i, j) and index.shared(i, j) >= least:
                    yield i, j


def check_sketches(records: Sequence[Record], purpose: str) -> None:
    """Raise UserError where there are records, and none has a hash to be compared by."""
    if records and not any(len(record.sketch) for record in records):
        raise UserError(
            f"none of the {len(records)} records has a hash, and {purpose} compare hashes; make "
            "the records with sketches, of more k-mers (a smaller scaled) if they are short"
        )


def unsketched(records: Sequence[Record]) -> int:
    """How many records have no hash, as short ones may: they are found similar to none."""
    return sum(not len(record.sketch) for record in records)


class Groups:
    """Things 0 … n - 1 in groups that grow together (union and find, with path halving)."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def first(self, thing: int) -> int:
        """The smallest number of its group."""
        parent = self._parent
        while parent[thing] != thing:
            parent[thing] = parent[parent[thing]]
            thing = parent[thing]
        return thing

    def together(self, a: int, b: int) -> bool:
        """Whether both are in one group."""
        return self.first(a) == self.first(b)

    def join(self, a: int, b: int) -> None:
        """Make one group of theirs."""
        a, b = self.first(a), self.first(b)
        self._parent[max(a, b)] = min(a, b)


def clusters(records: Sequence[Record], wanted: float) -> Groups:
    """Connected components: records are together that are similar, and what those are similar to.

    So no record is similar, to `wanted` or more, to one of another cluster. What is together
    already is not compared, so that a repeat in many records costs little.
    """
    groups = Groups(len(records))
    for a, b in similar_pairs(records, wanted, groups.together):
        groups.join(a, b)
    return groups
