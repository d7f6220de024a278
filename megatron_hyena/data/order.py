"""Draws that need no state: word number i of a key, place i of a permutation.

Each is a function of a key and an index, on whole arrays of indices, so that any position of a
stream is as cheap as its first. Integer arithmetic alone: the same numbers on every machine.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ROUNDS = 8
_SORTED = 4096
"""Permutations of as many or fewer are drawn whole, by sorting words."""


def draw_key(seed: int, *purpose: int) -> int:
    """A 64-bit key of `seed` ≥ 0 and what it is for, by numpy's SeedSequence (stable)."""
    return int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)[0])


def words(key: int, index: Indices | Words) -> Words:
    """Words number `index` ≥ 0 of `key`, by SplitMix64 (Steele, Lea and Flood 2014)."""
    word = (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN + np.uint64(key)
    word = (word ^ (word >> np.uint64(30))) * _FIRST
    word = (word ^ (word >> np.uint64(27))) * _SECOND
    return word ^ (word >> np.uint64(31))


class Permutation:
    """A permutation of 0 … `size` - 1 that gives any of its places at once.

    A Feistel network of SplitMix64 words on the bits that `size` needs, walked on until the
    result is below `size` (Black and Rogaway 2002): less than two walks on average.
    """

    def __init__(self, size: int, key: int) -> None:
        """`size` ≥ 1."""
        self.size = size
        self._table: Indices | None = None
        if size <= _SORTED:
            drawn = words(key, np.arange(size, dtype=np.int64))
            self._table = np.argsort(drawn, kind="stable").astype(np.int64)
            return
        bits = (size - 1).bit_length()
        self._left, self._right = bits // 2, bits - bits // 2
        self._keys = [int(word) for word in words(key, np.arange(_ROUNDS, dtype=np.int64))]

    def __call__(self, index: Indices) -> Indices:
        """int64 [n] images of `index` [n], each in [0, `size`)."""
        if self._table is not None:
            return self._table[index]
        image = self._mix(index.astype(np.uint64))
        while len(over := np.flatnonzero(image >= np.uint64(self.size))):
            image[over] = self._mix(image[over])
        return image.astype(np.int64)

    def _mix(self, value: Words) -> Words:
        left, right = value >> np.uint64(self._right), value & np.uint64((1 << self._right) - 1)
        for even, odd in zip(self._keys[::2], self._keys[1::2], strict=True):
            left = left ^ (words(even, right) >> np.uint64(64 - self._left))
            right = right ^ (words(odd, left) >> np.uint64(64 - self._right))
        return (left << np.uint64(self._right)) | right


class NearbyOrder:
    """A permutation of 0 … `size` - 1 whose neighbouring places come from few stretches.

    The numbers are cut into stretches of `among` / `STRETCHES` neighbours, which come in a drawn
    order; those of `STRETCHES` stretches are shuffled among one another. Whoever reads in this
    order needs few parts of what is read at a time.
    """

    STRETCHES = 16

    def __init__(self, size: int, key: int, among: int) -> None:
        """`size` and `among` ≥ 1."""
        self._key, self.size = key, size
        self._stretch = min(size, -(-among // self.STRETCHES))
        self._stretches = Permutation(size // self._stretch, draw_key(key, 0))
        self._group = self._stretch * self.STRETCHES
        self._permuted = lru_cache(maxsize=8)(self._permutation)

    def __call__(self, index: Indices) -> Indices:
        """int64 [n] images of `index` [n], each in [0, `size`)."""
        images = np.empty(len(index), dtype=np.int64)
        stretched = self._stretches.size * self._stretch  # behind it a rest, for itself
        for group in np.unique(np.where(index < stretched, index // self._group, -1)).tolist():
            first = group * self._group if group >= 0 else stretched
            last = min(first + self._group, stretched) if group >= 0 else self.size
            here = (index >= first) & (index < last)
            mixed = self._permuted(group, last - first)(index[here] - first)
            if group >= 0:
                nth, within = np.divmod(mixed, self._stretch)
                mixed = self._stretches(group * self.STRETCHES + nth) * self._stretch + within
            else:
                mixed += stretched
            images[here] = mixed
        return images

    def _permutation(self, group: int, size: int) -> Permutation:
        return Permutation(size, draw_key(self._key, 1, group + 1))


def shuffled(size: int, key: int, among: int = 0) -> Permutation | NearbyOrder:
    """A permutation of all, or, with `among` > 0, of as many neighbours of a few stretches."""
    return NearbyOrder(size, key, among) if among else Permutation(size, key)
