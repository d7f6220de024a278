"""The order of training once more, one number at a time, from its description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

ORDER, PHASE, STRAND, RUNS = range(4)
_ALL = (1 << 64) - 1

Item = TypeVar("Item")


def key(seed: int, *purpose: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=purpose).generate_state(1, np.uint64)[0])


def word(key: int, index: int) -> int:
    """SplitMix64 at state key + (index + 1) golden ratios."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & _ALL
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _ALL
    return z ^ (z >> 31)


def permutation(size: int, key: int) -> list[int]:
    """Small ones are sorted words, large ones a Feistel network that is walked on."""
    if size <= 4096:
        return sorted(range(size), key=lambda i: word(key, i))
    bits = len(bin(size - 1)) - 2
    low = bits - bits // 2
    keys = [word(key, i) for i in range(8)]

    def mix(x: int) -> int:
        left, right = divmod(x, 1 << low)
        for turn, k in enumerate(keys):
            if turn % 2 == 0:
                left ^= word(k, right) >> (64 - (bits - low))
            else:
                right ^= word(k, left) >> (64 - low)
        return (left << low) + right

    images = []
    for x in range(size):
        x = mix(x)
        while x >= size:
            x = mix(x)
        images.append(x)
    return images


def stretches(total: int, length: int, drawn: int, unit: int = 1) -> list[tuple[int, int]]:
    """Where the inputs of each window lie in a string of `total`, at the phase that `drawn` picks.

    The phase is any for which no window is empty.
    """
    free = unit * (length // unit // 2) if total >= 16 * length else 0
    n = 1
    while n * length - total < free:
        n += 1
    phases = [p for p in range(0, length, unit) if (n - 1) * length < total + p <= n * length]
    begin = -phases[drawn % len(phases)]
    return [(max(0, begin + i * length), min(total, begin + (i + 1) * length)) for i in range(n)]


def content(string: Sequence[Item], begin: int, end: int, length: int, pad: Item) -> list[Item]:
    """A window [length + 1]: its inputs and, if it is full, the target behind them."""
    shown = list(string[begin : end + 1 if end - begin == length else end])
    return shown + [pad] * (length + 1 - len(shown))


def laid_runs(count: int, seed: int, epoch: int) -> list[tuple[int, bool]]:
    """The runs of a packed epoch in their order, and whether each is read from the other strand."""
    order = permutation(count, key(seed, epoch, RUNS))
    return [(run, word(key(seed, epoch, STRAND), i) >= 1 << 63) for i, run in enumerate(order)]


def laid_windows(
    string: Sequence[Item], length: int, seed: int, epoch: int, pad: Item, unit: int = 1
) -> list[list[Item]]:
    """The windows of a packed epoch, in their order, cut from its string."""
    places = stretches(len(string), length, word(key(seed, epoch, PHASE), 0), unit)
    shown = permutation(len(places), key(seed, epoch, ORDER))
    return [content(string, *places[i], length, pad) for i in shown]
