"""Windows of one run each: the order of training, and the windows of evaluation.

Training that packs several runs into a window is in `packing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import PAD, Bases, SequenceType, reverse_complement
from megatron_hyena.data.order import Indices, NearbyOrder, Permutation, shuffled, words
from megatron_hyena.data.shard_reader import Run, open_runs
from megatron_hyena.data.stream import PHASE, WINDOW_ORDER, Cuts, RunStream
from megatron_hyena.data.window import (
    Window,
    check_tracks,
    pad_window,
    read_window,
    stack_windows,
)
from megatron_hyena.errors import UserError

BLOCK = 1024
"""Positions whose draws are made together."""


class WindowStream(RunStream):
    """Windows of one run each, shuffled; each is shown from a strand of its own.

    Each run is cut at a phase of the epoch's own (see `Cuts`), so window edges differ from epoch
    to epoch. A window short of bases, at a run's ends, is filled up with PAD; its last base is no
    target of the base behind.
    """

    def __init__(
        self,
        source: Path | str | Sequence[Run],
        sequence_length: int,
        seed: int,
        *,
        augment_reverse_complement: bool = False,
        verify: bool = True,
        tracks: Sequence[str] = (),
        among: int = 0,
    ) -> None:
        """Open `source`; see `RunStream`."""
        super().__init__(
            source,
            sequence_length,
            seed,
            augment_reverse_complement=augment_reverse_complement,
            verify=verify,
            tracks=tracks,
            among=among,
        )
        self._cuts = Cuts.of(self.run_lengths, sequence_length)
        self._types = np.array([run.type for run in self.runs], dtype=np.uint8)
        self.windows_per_epoch = self._cuts.total
        self._run_begins = np.cumsum(self.run_lengths) - self.run_lengths
        # Most windows lie in one piece, which is sliced at once.
        self._pieces = [piece for run in self.runs for piece in run.pieces]
        self._piece_begins = np.concatenate(
            [
                np.array(run.begins, dtype=np.int64) + begin
                for run, begin in zip(self.runs, self._run_begins.tolist(), strict=True)
            ]
        )
        self._piece_lengths = np.array([len(piece) for piece in self._pieces], dtype=np.int64)
        self._counted = any(run.corrupt and run.corrupt.policy == "skip" for run in self.runs)
        self._order = lru_cache(maxsize=4)(self._draw_order)
        self._block = lru_cache(maxsize=8)(self._draw_block)

    def prefetch(self, positions: Sequence[int]) -> None:
        """Ask for the shards under the windows, if they are of a store."""
        if not self._stored:
            return
        for number, first, last in self._places(np.asarray(positions))[:, :3].tolist():
            self.runs[number].prefetch(first, last)

    def _draw_order(self, epoch: int) -> Permutation | NearbyOrder:
        return shuffled(self.windows_per_epoch, self._key(epoch, WINDOW_ORDER), self.among)

    def _show(self, positions: Indices) -> Window:
        places = self._places(positions)
        width = self.sequence_length + 1
        if self.tracks:
            parts = [
                read_window(self.runs[number], first, last, self.tracks, reverse=bool(turned))
                for number, first, last, turned in places[:, :4].tolist()
            ]
            return stack_windows([pad_window(part, width) for part in parts])
        content = np.empty((len(places), width), dtype=np.uint8)
        columns = places.T.tolist()
        for row, number, first, last, turned, nth, at in zip(content, *columns, strict=True):
            length = last - first
            if length < width:
                row[length:] = PAD
                row = row[:length]
            if nth >= 0:
                row[:] = self._pieces[nth][at : at + length]
            else:
                row[:] = self.runs[number].read(first, last)
            if turned:
                row[:] = reverse_complement(row)
        return Window(content, np.broadcast_to(self._types[places[:, :1]], content.shape))

    def _places(self, positions: Indices) -> Indices:
        """[n, 6] what each window reads: run, [first, last) of it, whether from the other strand,
        and the piece that all of it lies in, with the first base's place there; -1 if none is.

        Draws are made for `BLOCK` positions at once, of which the last few are kept.
        """
        blocks = positions // BLOCK
        if blocks[0] == blocks[-1] and (blocks == blocks[0]).all():
            return self._block(int(blocks[0]))[positions - blocks * BLOCK]
        places = np.empty((len(positions), 6), dtype=np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            places[here] = self._block(block)[positions[here] - block * BLOCK]
        return places

    def _draw_block(self, block: int) -> Indices:
        positions = np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.int64)
        epochs, indices = np.divmod(positions, self.windows_per_epoch)
        cuts, length = self._cuts, self.sequence_length
        parts = []
        for epoch in np.unique(epochs).tolist():
            chosen = self._order(epoch)(indices[epochs == epoch])
            runs = cuts.stretch_of(chosen)
            starts = cuts.begins(chosen, runs, words(self._key(epoch, PHASE), runs))
            ends = np.minimum(starts + length, self.run_lengths[runs])
            starts = np.maximum(starts, 0)
            turned = self._strands(epoch, chosen) & (self._types[runs] == SequenceType.DNA)
            # A full window has the target of its last input too.
            full = ends - starts == length
            firsts = np.where(full & turned, np.maximum(starts - 1, 0), starts)
            lasts = np.where(full & ~turned, np.minimum(ends + 1, self.run_lengths[runs]), ends)
            pieces, offsets = self._in_one_piece(runs, firsts, lasts)
            parts.append(np.stack([runs, firsts, lasts, turned, pieces, offsets], axis=1))
        return np.concatenate(parts)

    def _in_one_piece(self, runs: Indices, firsts: Indices, lasts: Indices) -> list[Indices]:
        """[n] number of the piece that a stretch lies in, -1 if in several; [n] its place there."""
        spots = self._run_begins[runs] + firsts
        under = np.searchsorted(self._piece_begins, spots, side="right") - 1
        offsets = spots - self._piece_begins[under]
        within = offsets + lasts - firsts <= self._piece_lengths[under]
        return [np.where(within & (not self._counted), under, -1), offsets]


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
