"""The order of training: windows as a pure function of (seed, epoch, position).

Nothing here knows of ranks or workers: position p, counted over all epochs since the start of
training, is the same window everywhere, so resuming is asking for the next position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import PAD, Bases, reverse_complement
from megatron_hyena.data.shard_reader import Run, open_runs
from megatron_hyena.errors import UserError

_ORDER, _PHASE, _STRAND = range(3)


@dataclass(frozen=True)
class _Epoch:
    """The draws of one epoch: n windows, r runs."""

    order: npt.NDArray[np.int64]
    """[n] window shown at each position."""
    phases: npt.NDArray[np.int64]
    """[r] where the first window of each run starts."""
    reverse: npt.NDArray[np.bool_]
    """[n] whether the window at each position is shown from the other strand."""


class WindowStream:
    """Windows of `sequence_length + 1` bytes without end, the next one a stride of that less one.

    An epoch shows a constant number of windows, `windows_per_epoch`. Shuffled, each run's windows
    start at a phase of the epoch's own, so that window edges differ from epoch to epoch and every
    base is reached; a run of R ≥ 2 L bases gives R // L - 1 windows (L + 1 ≤ R < 2 L: one) and
    its phase is uniform over the bases to spare. Unshuffled, phases are 0, windows come in order,
    and a run gives (R - 1) // L.

    All draws are raw 64-bit words of Philox (Salmon et al. 2011) seeded with (seed, epoch,
    purpose); numpy keeps these words the same in every release, unlike its permutations.
    """

    def __init__(
        self,
        source: Path | str,
        sequence_length: int,
        seed: int,
        *,
        augment_reverse_complement: bool = False,
        shuffle: bool = True,
        verify: bool = True,
    ) -> None:
        """Open `source`, a folder of shards or a glob (see `open_runs`, also for `verify`).

        `seed` ≥ 0. `augment_reverse_complement` shows each window from either strand with equal
        chance. Raises UserError where no run holds a single window.
        """
        if sequence_length < 1 or seed < 0:
            raise ValueError("sequence_length must be positive and seed not negative")
        self.source = str(source)
        self.sequence_length = sequence_length
        self.seed = seed
        self.augment_reverse_complement = augment_reverse_complement
        self.shuffle = shuffle
        self.runs: list[Run] = open_runs(source, verify=verify)
        lengths = np.array([run.length for run in self.runs], dtype=np.int64)
        whole = (lengths - 1) // sequence_length
        shifted = np.where(whole > 0, np.maximum(1, lengths // sequence_length - 1), 0)
        self._counts = shifted if shuffle else whole
        self._ends = np.cumsum(self._counts)
        self._spare = np.maximum(0, lengths - 1 - self._counts * sequence_length)
        self.windows_per_epoch = int(self._counts.sum())
        if self.windows_per_epoch == 0:
            raise UserError(
                f"{self.source} holds no stretch of {sequence_length + 1} bases (the longest has "
                f"{int(lengths.max(initial=0))}); set a smaller data.sequence_length"
            )
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def check_global_batch(self, global_batch_size: int) -> None:
        """Raise UserError where an epoch has fewer windows than one global batch."""
        if self.windows_per_epoch < global_batch_size:
            raise UserError(
                f"{self.source} holds {self.windows_per_epoch} sequences of "
                f"{self.sequence_length} bases, fewer than one global batch of "
                f"{global_batch_size}; set a smaller train.global_batch_size or "
                "data.sequence_length, or add data"
            )

    def window(self, position: int) -> Bases:
        """Window number `position` ≥ 0 since the start of training, uint8 [L + 1]."""
        if position < 0:
            raise ValueError("position must not be negative")
        number, index = divmod(position, self.windows_per_epoch)
        epoch = self._epoch(number)
        chosen = int(epoch.order[index])
        run = int(np.searchsorted(self._ends, chosen, side="right"))
        nth = chosen - int(self._ends[run] - self._counts[run])
        start = int(epoch.phases[run]) + nth * self.sequence_length
        bases = self.runs[run].read(start, start + self.sequence_length + 1)
        return reverse_complement(bases) if epoch.reverse[index] else bases

    def _draw(self, epoch: int) -> _Epoch:
        n = self.windows_per_epoch
        order = np.arange(n, dtype=np.int64)
        phases = np.zeros(len(self.runs), dtype=np.int64)
        reverse = np.zeros(n, dtype=np.bool_)
        if self.shuffle:
            order = np.argsort(self._words(epoch, _ORDER, n), kind="stable").astype(np.int64)
            words = self._words(epoch, _PHASE, len(self.runs))
            phases = (words % (self._spare.astype(np.uint64) + np.uint64(1))).astype(np.int64)
        if self.augment_reverse_complement:
            reverse = (self._words(epoch, _STRAND, n) >> np.uint64(63)).astype(np.bool_)
        return _Epoch(order, phases, reverse)

    def _words(self, epoch: int, purpose: int, count: int) -> npt.NDArray[np.uint64]:
        seeds = np.random.SeedSequence(self.seed, spawn_key=(epoch, purpose))
        return np.random.Philox(seeds).random_raw(count)


Scored = tuple[Bases, npt.NDArray[np.float32]]
"""A window's bytes uint8 [L + 1] and the weights float32 [L] of its targets, bytes[1:]."""


class SequentialWindows(Sequence[Scored]):
    """Windows for evaluation: each base after the first of its run is scored exactly once.

    A window starts `context` - 1 bases before the end of the one before it, and scores only what
    that one did not: each base has at least `context` bases to its left, or all that its run has.
    The last window of a run is filled up with PAD, of weight 0.
    """

    def __init__(
        self, source: Path | str, sequence_length: int, context: int, *, verify: bool = True
    ) -> None:
        """Open `source` (see `open_runs`); raises UserError unless 1 ≤ `context` ≤ L."""
        if not 1 <= context <= sequence_length:
            raise UserError(
                f"the evaluation context is {context} bases; give 1 to {sequence_length}, "
                "the sequence length"
            )
        self.sequence_length = sequence_length
        self.context = context
        self.runs = open_runs(source, verify=verify)
        self._stride = sequence_length + 1 - context
        counts = [
            1 + max(0, -(-(run.length - 1 - sequence_length) // self._stride))
            if run.length > 1
            else 0
            for run in self.runs
        ]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._begins = self._ends - counts

    @property
    def scored_bases(self) -> int:
        """Bases that weigh 1 over all windows."""
        return sum(run.length - 1 for run in self.runs)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, index: int) -> tuple[int, int]:
        """(number of the run, base of the run at which the window begins)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, (index - int(self._begins[number])) * self._stride

    @overload
    def __getitem__(self, index: int) -> Scored: ...

    @overload
    def __getitem__(self, index: slice) -> list[Scored]: ...

    def __getitem__(self, index: int | slice) -> Scored | list[Scored]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, start = self.place(index)
        run = self.runs[number]
        end = min(run.length, start + self.sequence_length + 1)
        window = np.full(self.sequence_length + 1, PAD, dtype=np.uint8)
        window[: end - start] = run.read(start, end)
        weights = np.zeros(self.sequence_length, dtype=np.float32)
        weights[self.context - 1 if start else 0 : end - start - 1] = 1.0
        return window, weights


class ChosenWindows(Sequence[Scored]):
    """`count` of the windows (0: all), evenly spread, so that a few speak for the whole split."""

    def __init__(self, windows: SequentialWindows, count: int) -> None:
        self.windows, self.sequence_length = windows, windows.sequence_length
        count = min(count or len(windows), len(windows))
        spread = np.linspace(0, len(windows) - 1, count) if count else np.zeros(0)
        self.indices = np.unique(spread.astype(np.int64)).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Scored: ...

    @overload
    def __getitem__(self, index: slice) -> list[Scored]: ...

    def __getitem__(self, index: int | slice) -> Scored | list[Scored]:
        if isinstance(index, slice):
            return [self.windows[i] for i in self.indices[index]]
        return self.windows[self.indices[index]]


def sequential_windows(
    source: Path | str, sequence_length: int, context: int, *, verify: bool = True
) -> SequentialWindows:
    """The evaluation windows of `source`, in order; see `SequentialWindows`."""
    return SequentialWindows(source, sequence_length, context, verify=verify)
