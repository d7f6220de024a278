"""Documents of packed rows, found and drawn one position at a time; nothing of the package is used.

A row's documents are runs of equal numbers; the numbers themselves mean nothing and may come again.
"""

from __future__ import annotations

import torch
from torch import Tensor

Run = tuple[int, int, int]
"""Row, first position, and the position behind the last."""


def runs(ids_BL: Tensor) -> list[Run]:
    """The documents of every row, row by row and from left to right."""
    found = []
    for row, numbers in enumerate(ids_BL.tolist()):
        start = 0
        for t in range(1, len(numbers) + 1):
            if t == len(numbers) or numbers[t] != numbers[t - 1]:
                found.append((row, start, t))
                start = t
    return found


def counted(ids_BL: Tensor) -> list[list[int]]:
    """Positions since the start of the document."""
    places = [[0] * ids_BL.shape[1] for _ in range(len(ids_BL))]
    for row, start, stop in runs(ids_BL):
        for t in range(start, stop):
            places[row][t] = t - start
    return places


def numbered(length: int, starts: list[list[int]]) -> Tensor:
    """ids [B, L] of rows whose documents begin at 0 and at `starts`; numbers come again."""
    ids = torch.zeros(len(starts), length, dtype=torch.int64)
    for row, places in enumerate(starts):
        for t in places:
            ids[row, t:] += 1
    return ids * 5 % 3


def drawn(rows: int, length: int, seed: int) -> Tensor:
    """Random ids [B, L]: from a document or two in the first row to many in the last."""
    generator = torch.Generator().manual_seed(seed)
    starts = []
    for row in range(rows):
        often = torch.rand(length, generator=generator) * length < 2 * 3**row
        starts.append([t for t in range(1, length) if often[t]])
    return numbered(length, starts)


def layouts(length: int) -> dict[str, Tensor]:
    """The extremes, and what lies between, [B, length]."""
    every = list(range(1, length))
    ends = [t for t in (1, length - 1) if 0 < t < length]
    return {
        "one": numbered(length, [[]]),
        "each byte": numbered(length, [every]),
        "first and last byte": numbered(length, [sorted(set(ends))]),
        "unlike rows": numbered(length, [[], every[length // 2 :], every[: length // 3]]),
        **{f"drawn {seed}": drawn(3, length, seed) for seed in range(3)},
    }
