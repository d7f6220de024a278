"""Counters of the bytes that this rank sends to other ranks, by kind of layer and direction.

A reduction is counted as the best known algorithm sends it: an all-reduce of n bytes over T ranks
2 (T - 1) / T n, a reduce-scatter half of it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

Direction = Literal["forward", "backward"]


class Traffic:
    """Bytes sent since the last `take`."""

    def __init__(self) -> None:
        self._sent: dict[tuple[str, Direction], int] = defaultdict(int)

    def add(self, kind: str, direction: Direction, count: int) -> None:
        """`count` bytes more for layers of `kind`."""
        if count:
            self._sent[kind, direction] += count

    def take(self) -> dict[str, dict[Direction, int]]:
        """{kind: {direction: bytes}}, and start again from 0."""
        sent: dict[str, dict[Direction, int]] = defaultdict(lambda: {"forward": 0, "backward": 0})
        for (kind, direction), count in self._sent.items():
            sent[kind][direction] = count
        self._sent.clear()
        return dict(sent)
