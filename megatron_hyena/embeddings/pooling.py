"""Rows of so many bases each, from states that arrive in pieces of any size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.floating]


class Pooler:
    """One sequence.

    Args:
        bases: of a row; None for the whole sequence.
        pool: `mean`, summed in double precision, or `last`.
    """

    def __init__(self, bases: int | None, pool: str) -> None:
        self.bases, self.pool = bases, pool
        self._open: Rows | None = None
        self._count = 0

    def feed(self, states: Rows) -> Rows:
        """Take states [l, h]; the rows [k, h] that they complete, in their dtype or float64."""
        if self.bases == 1:
            return states
        rows, at = [], 0
        while at < len(states):
            wanted = len(states) if self.bases is None else self.bases - self._count
            if self._count == 0 and self.bases is not None and len(states) - at >= self.bases:
                whole = (len(states) - at) // self.bases * self.bases
                body = states[at : at + whole].reshape(-1, self.bases, states.shape[1])
                last = self.pool == "last"
                rows.append(body[:, -1] if last else body.mean(1, dtype=np.float64))
                at += whole
                continue
            self._take(states[at : at + wanted])
            at += wanted
            if self._count == self.bases:
                rows.append(self.finish())
        return np.concatenate(rows) if rows else states[:0]

    def _take(self, states: Rows) -> None:
        self._count += len(states)
        if self.pool == "last":
            self._open = states[-1].copy()
        else:
            total = states.sum(0, dtype=np.float64)
            self._open = total if self._open is None else self._open + total

    def finish(self) -> Rows:
        """The row [1, h] that is not complete; none, [0, h], where all are."""
        if self._open is None:
            return np.zeros((0, 0))
        row = self._open if self.pool == "last" else self._open / self._count
        self._open, self._count = None, 0
        return np.asarray(row[None])
