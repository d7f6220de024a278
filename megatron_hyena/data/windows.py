"""Windows of one run each: the order of training, and the windows of evaluation.

Training that packs several runs into a window is in `packing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import Bases
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.stream import (
    PHASE,
    STRAND,
    WINDOW_ORDER,
    TrainingStream,
    shifted_counts,
)
from megatron_hyena.data.window import Window, check_tracks, pad_window, read_window
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class _Epoch:
    """The draws of one epoch: n windows, r runs."""

    order: npt.NDArray[np.int64]
    """[n] window shown at each position."""
    phases: npt.NDArray[np.int64]
    """[r] where the first window of each run starts."""
    reverse: npt.NDArray[np.bool_]
    """[n] whether the window at each position is shown from the other strand."""


class WindowStream(TrainingStream):
    """Windows of one run each, a stride of `sequence_length` apart.

    Shuffled, each run's windows start at a phase of the epoch's own, so that window edges differ
    from epoch to epoch and every base is reached; a run gives `shifted_counts` windows and its
    phase is uniform over the bases to spare. Unshuffled, phases are 0, windows come in order, and
    a run of R bases gives (R - 1) // L.
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
        tracks: Sequence[str] = (),
    ) -> None:
        """Open `source`; see `TrainingStream`. Each window is shown from a strand of its own.

        Raises UserError where no run holds a single window.
        """
        super().__init__(
            source,
            sequence_length,
            seed,
            augment_reverse_complement=augment_reverse_complement,
            verify=verify,
            tracks=tracks,
        )
        self.shuffle = shuffle
        lengths = self.run_lengths
        whole = (lengths - 1) // sequence_length
        self._counts = shifted_counts(lengths, sequence_length) if shuffle else whole
        self._ends = np.cumsum(self._counts)
        self._spare = np.maximum(0, lengths - 1 - self._counts * sequence_length)
        self.windows_per_epoch = int(self._counts.sum())
        if self.windows_per_epoch == 0:
            raise UserError(
                f"{self.source} holds no stretch of {sequence_length + 1} bases (the longest has "
                f"{int(lengths.max(initial=0))}); set a smaller data.sequence_length, "
                "or data.pack=true"
            )
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _show(self, epoch: int, index: int) -> Window:
        drawn = self._epoch(epoch)
        chosen = int(drawn.order[index])
        run = int(np.searchsorted(self._ends, chosen, side="right"))
        nth = chosen - int(self._ends[run] - self._counts[run])
        start = int(drawn.phases[run]) + nth * self.sequence_length
        end = start + self.sequence_length + 1
        return self._stretch(run, start, end, reverse=bool(drawn.reverse[index]))

    def _draw(self, epoch: int) -> _Epoch:
        n = self.windows_per_epoch
        order = np.arange(n, dtype=np.int64)
        phases = np.zeros(len(self.runs), dtype=np.int64)
        if self.shuffle:
            order = self._drawn_order(epoch, WINDOW_ORDER, n)
            phases = self._drawn_phases(epoch, PHASE, self._spare)
        return _Epoch(order, phases, self._drawn_strands(epoch, STRAND, n))


Scored = tuple[Bases, npt.NDArray[np.float32]]
"""A window's bytes uint8 [L + 1] and the weights float32 [L] of its targets, bytes[1:]."""


class SequentialWindows(Sequence[Scored]):
    """Windows for evaluation: each base after the first of its run is scored exactly once.

    A window starts `context` - 1 bases before the end of the one before it, and scores only what
    that one did not: each base has at least `context` bases to its left, or all that its run has.
    The last window of a run is filled up with PAD, of weight 0.
    """

    def __init__(
        self,
        source: Path | str,
        sequence_length: int,
        context: int,
        *,
        verify: bool = True,
        tracks: Sequence[str] = (),
    ) -> None:
        """Open `source` (see `open_runs`); raises UserError unless 1 ≤ `context` ≤ L.

        `tracks`: what `window` brings beside the bases; raises UserError as `check_tracks` does.
        """
        if not 1 <= context <= sequence_length:
            raise UserError(
                f"the evaluation context is {context} bases; give 1 to {sequence_length}, "
                "the sequence length"
            )
        self.sequence_length = sequence_length
        self.context = context
        self.runs = open_runs(source, verify=verify)
        self.tracks = tuple(tracks)
        check_tracks(self.runs, self.tracks, both_strands=False)
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

    def window(self, index: int) -> Window:
        """Window `index` with its tracks, which are unknown (the type: the run's) under PAD."""
        number, start = self.place(index)
        run = self.runs[number]
        end = min(run.length, start + self.sequence_length + 1)
        return pad_window(read_window(run, start, end, self.tracks), self.sequence_length + 1)

    def weights(self, index: int) -> npt.NDArray[np.float32]:
        """float32 [L]: 1 for the targets that this window scores."""
        number, start = self.place(index)
        end = min(self.runs[number].length, start + self.sequence_length + 1)
        weights = np.zeros(self.sequence_length, dtype=np.float32)
        weights[self.context - 1 if start else 0 : end - start - 1] = 1.0
        return weights

    @overload
    def __getitem__(self, index: int) -> Scored: ...

    @overload
    def __getitem__(self, index: slice) -> list[Scored]: ...

    def __getitem__(self, index: int | slice) -> Scored | list[Scored]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.window(index).bases, self.weights(index)


class ChosenWindows(Sequence[Scored]):
    """`count` of the windows (0: all), evenly spread, so that a few speak for the whole split."""

    def __init__(self, windows: SequentialWindows, count: int) -> None:
        self.windows, self.sequence_length = windows, windows.sequence_length
        self.tracks = windows.tracks
        count = min(count or len(windows), len(windows))
        spread = np.linspace(0, len(windows) - 1, count) if count else np.zeros(0)
        self.indices = np.unique(spread.astype(np.int64)).tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def window(self, index: int) -> Window:
        """The chosen window number `index`; see `SequentialWindows.window`."""
        return self.windows.window(self.indices[index])

    def weights(self, index: int) -> npt.NDArray[np.float32]:
        """Its weights; see `SequentialWindows.weights`."""
        return self.windows.weights(self.indices[index])

    @overload
    def __getitem__(self, index: int) -> Scored: ...

    @overload
    def __getitem__(self, index: slice) -> list[Scored]: ...

    def __getitem__(self, index: int | slice) -> Scored | list[Scored]:
        if isinstance(index, slice):
            return [self.windows[i] for i in self.indices[index]]
        return self.windows[self.indices[index]]


def sequential_windows(
    source: Path | str,
    sequence_length: int,
    context: int,
    *,
    verify: bool = True,
    tracks: Sequence[str] = (),
) -> SequentialWindows:
    """The evaluation windows of `source`, in order; see `SequentialWindows`."""
    return SequentialWindows(source, sequence_length, context, verify=verify, tracks=tracks)
