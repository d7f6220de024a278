"""K-mers as numbers: every k letters of a sequence in one 64-bit word, a piece at a time.

Nucleotides take two bits, so that 31 fit; the smaller of a k-mer and its reverse complement stands
for both. Amino acids take five bits, so that 12 fit, and the highest bit tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from megatron_hyena.corpus.records import Hashes
from megatron_hyena.data.alphabet import Bases, SequenceType

K_OF_STRANDS = 31
K_OF_PROTEIN = 12
_NONE = np.uint8(255)
_BETWEEN: Bases = np.zeros(1, dtype=np.uint8)
_MERGED = 1 << 22
"""K-mers that are taken before they are sorted among those that are there."""


def _table(letters: str) -> npt.NDArray[np.uint8]:
    table = np.full(256, _NONE, dtype=np.uint8)
    for case in (letters.upper(), letters.lower()):
        table[list(case.encode())] = np.arange(len(case))
    return table


_NUCLEOTIDES = _table("ACGT")
_NUCLEOTIDES[list(b"Uu")] = _NUCLEOTIDES[ord("T")]
_AMINO_ACIDS = _table("ACDEFGHIKLMNOPQRSTUVWY")


def codes(bases: Bases, kind: SequenceType) -> Hashes:
    """The k-mers of `bases` [n] as uint64 [m], in order, without those with another letter.

    m is at most n - k + 1. Case does not matter, and U is T in nucleotides.
    """
    if kind.is_nucleic:
        letters, k = _NUCLEOTIDES[bases], K_OF_STRANDS
        forward = _joined(letters & np.uint8(3), k, 2, first_highest=True)
        backward = _joined(np.uint8(3) - (letters & np.uint8(3)), k, 2, first_highest=False)
        found = np.minimum(forward, backward)
    else:
        letters, k = _AMINO_ACIDS[bases], K_OF_PROTEIN
        found = _joined(letters & np.uint8(31), k, 5, first_highest=True) | np.uint64(1 << 63)
    strangers = np.concatenate([[0], np.cumsum(letters == _NONE)])
    return found[strangers[k:] == strangers[:-k]] if len(bases) >= k else found


def _joined(letters: npt.NDArray[np.uint8], k: int, bits: int, *, first_highest: bool) -> Hashes:
    """[n - k + 1] the codes of k letters each, of `bits` bits, doubled from one to 2, 4, 8 …"""
    count = max(0, len(letters) - k + 1)
    power, size = letters.astype(np.uint64), 1  # the codes of `size` letters from each place on
    found, done = np.zeros(count, dtype=np.uint64), 0
    while count:
        if k & size:
            part = power[done : done + count]
            if first_highest:
                found = found << np.uint64(bits * size) | part
            else:
                found |= part << np.uint64(bits * done)
            done += size
        if done == k:
            break
        left, right, shift = power[:-size], power[size:], np.uint64(bits * size)
        power = left << shift | right if first_highest else left | right << shift
        size *= 2
    return found


def sampled(kmers: Hashes, scaled: int) -> Hashes:
    """One in `scaled` of `kmers` uint64 [n]: those whose hash (SplitMix64) is small."""
    if scaled == 1:
        return kmers
    mixed = kmers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ mixed >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return kmers[(mixed ^ mixed >> np.uint64(31)) < np.uint64(2**64 // scaled)]


class Together:
    """Short sequences of one type laid end to end, so that many are worked on at a time.

    Between two lies a byte that is no letter, and no k-mer spans it. A long sequence does not wait
    for short ones, so their order is not kept.
    """

    def __init__(self, take: Callable[[Bases], None], size: int) -> None:
        """`take` is given uint8 [n], n at least `size` but for the last, or one long sequence."""
        self._take, self._size = take, size
        self._parts: list[Bases] = []
        self._waiting = 0

    def add(self, bases: Bases) -> None:
        """Take a sequence uint8 [n]."""
        if len(bases) >= self._size:
            self._take(bases)
            return
        self._parts += [bases, _BETWEEN]
        self._waiting += len(bases) + 1
        if self._waiting >= self._size:
            self.finish()

    def finish(self) -> None:
        """Pass on what waits."""
        if self._parts:
            self._take(np.concatenate(self._parts))
            self._parts, self._waiting = [], 0


def distinct(values: Hashes) -> Hashes:
    """uint64 [n] -> [m], sorted, each once. By sorting: NumPy's own hashes, twenty times slower."""
    ordered = np.sort(values)
    new = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


class Distinct:
    """Distinct numbers, gathered a piece at a time."""

    def __init__(self) -> None:
        self._sorted: Hashes = np.empty(0, dtype=np.uint64)
        self._new: list[Hashes] = []
        self._waiting = 0

    def add(self, values: Hashes) -> None:
        """Take uint64 [n]."""
        self._new.append(values)
        self._waiting += len(values)
        if self._waiting > max(_MERGED, len(self._sorted)):
            self.values()

    def values(self) -> Hashes:
        """uint64 [m]: all that were added, sorted, each once."""
        self._sorted = distinct(np.concatenate([self._sorted, *self._new]))
        self._new, self._waiting = [], 0
        return self._sorted
