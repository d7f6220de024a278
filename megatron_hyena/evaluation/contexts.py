"""Counting bases behind contexts of several lengths at once.

A context is made of known bases (A, C, G, T; case folded): it ends at the start of its run and
at any other byte, however long it is asked to be.

Layout of a table, of counts or of probabilities: one float64 or int64 array [rows, 4], the rows of
order 0, 1, .. k one after the other. The row of a context of m bases is (4^m - 1) / 3 plus its
number in base 4, in which the base just before the predicted one is the lowest digit: leaving out
the farthest base is then a remainder, and the contexts of order m repeat those of order m - 1 four
times over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_hyena.errors import UserError

Counts = NDArray[np.int64]  # [rows, 4]
Runs = Sequence[NDArray[np.uint8]]

UNKNOWN = 4
PIECE = 1 << 22  # positions handled at once, so that memory does not grow with the genome


def _base_codes() -> NDArray[np.uint8]:
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    for code, base in enumerate("ACGT"):
        table[[ord(base), ord(base.lower())]] = code
    table[[ord("U"), ord("u")]] = table[ord("T")]  # RNA
    return table


_CODES = _base_codes()


def first_row_of(order: int) -> int:
    """The number of rows of all orders below `order`, which is that order's first row."""
    return (4**order - 1) // 3


def level_of(table: NDArray, order: int) -> NDArray:
    """The rows [4^order, 4] of one order, as a view."""
    return table[first_row_of(order) : first_row_of(order + 1)]


def _context_rows(codes: NDArray[np.uint8], order: int) -> NDArray[np.int32]:
    """int32 [n]: the row of the longest known context, of at most `order` bases, of each place."""
    index = np.arange(len(codes), dtype=np.int32)
    barrier = np.maximum.accumulate(np.where(codes == UNKNOWN, index, -1))
    length = index - 1  # minus the last barrier strictly before
    length[1:] -= barrier[:-1]
    length[:1] = 0
    digits = (codes & 3).astype(np.int32)
    context = np.zeros_like(index)
    for distance in range(1, min(order, len(codes) - 1) + 1):
        context[distance:] |= digits[:-distance] << (2 * (distance - 1))
    offsets = np.array([first_row_of(m) for m in range(order + 1)], dtype=np.int32)
    first_row = offsets[np.minimum(length, order)]
    return first_row + (context & 3 * first_row)  # 3 * offset = 4^m - 1 keeps m digits


def pieces(
    run: NDArray[np.uint8], order: int
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.uint8]]]:
    """Cuts a run into (start, rows, codes) of at most PIECE positions; contexts reach across."""
    for start in range(0, len(run), PIECE):
        left = max(0, start - order)
        codes = _CODES[run[left : start + PIECE]]
        yield start, _context_rows(codes, order)[start - left :], codes[start - left :]


def _count(runs: Runs, order: int, skip: int) -> Counts:
    """Counts each base but the first `skip` of a run once, at its longest context."""
    rows = first_row_of(order + 1)
    counts = np.zeros(rows * 4, dtype=np.int64)
    for run in runs:
        for start, context_rows, codes in pieces(run, order):
            known = np.flatnonzero(codes < UNKNOWN)
            known = known[known + start >= skip]
            cells = context_rows[known].astype(np.int64) * 4 + codes[known]
            np.add.at(counts, cells, 1)  # bincount would cost all rows for each short run
    return counts.reshape(rows, 4)


def count_scored(runs: Runs, order: int) -> Counts:
    """Counts at longest contexts, without the first byte of each run; UserError if none is left."""
    counts = _count(runs, order, skip=1)
    if not counts.any():
        raise UserError(
            "the runs to be scored hold no A, C, G or T behind their first byte;"
            " give a longer validation or test part"
        )
    return counts


def count_training(runs: Runs, order: int, both_strands: bool) -> Counts:
    """Counts at longest contexts, with the reverse complements too; UserError without bases."""
    counts = _count(runs, order, skip=0)
    if not counts.any():
        raise UserError("the training runs hold no A, C, G or T; give a longer training part")
    if both_strands:
        counts += _count([_reverse_complement(run) for run in runs], order, skip=0)
    return counts


def _reverse_complement(run: NDArray[np.uint8]) -> NDArray[np.uint8]:
    letters = np.frombuffer(b"TGCAN", dtype=np.uint8)
    return letters[_CODES[run[::-1]]]


def marginalise(counts: Counts, order: int) -> Counts:
    """Lets every lower order count the longer contexts that end in it, too."""
    counts = counts.copy()
    for lower in range(order - 1, -1, -1):
        level_of(counts, lower)[:] += level_of(counts, lower + 1).reshape(4, -1, 4).sum(axis=0)
    return counts


def lower_order(counts: Counts, max_order: int, order: int) -> Counts:
    """Counts at longest contexts, recounted for contexts of at most `order` bases."""
    result = counts[: first_row_of(order + 1)].copy()
    for longer in range(order + 1, max_order + 1):
        level_of(result, order)[:] += level_of(counts, longer).reshape(-1, 4**order, 4).sum(axis=0)
    return result
