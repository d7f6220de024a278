"""The order of training with documents packed: sequences filled with run after run.

A document is a run of the shards: a contig or, where pieces of nothing but N (or the splits) part
it, each stretch of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.order import Indices, NearbyOrder, Permutation, shuffled, words
from megatron_hyena.data.shard_reader import Run
from megatron_hyena.data.stream import PHASE, RUN_ORDER, WINDOW_ORDER, Cuts, RunStream
from megatron_hyena.data.window import (
    Window,
    join_windows,
    pad_window,
    read_window,
    stack_windows,
)
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class _Epoch:
    """The draws of one epoch: n windows over r runs laid end to end."""

    order: Permutation | NearbyOrder
    """Of the n windows."""
    phase: int
    """Inputs that the first window lacks."""
    runs: Indices
    """[r] number of the run at each place of the string."""
    ends: Indices
    """[r] where the run at each place, with its PAD, ends, in bases from the string's start."""
    reverse: npt.NDArray[np.bool_]
    """[r] whether the run at each place is read from the other strand."""


@dataclass(frozen=True)
class _Part:
    """Bases [start, end) of a run in a window, filled up with PAD to `width`."""

    run: int
    start: int
    end: int
    reverse: bool
    width: int


class PackedStream(RunStream):
    """Windows over all runs laid end to end, so that short runs fill sequences too.

    An epoch lays the runs end to end in an order of its own, each read as a whole from a strand
    of its own, cuts the string as one stretch (see `Cuts`) and shows its windows in a drawn
    order. The first and the last are filled up with PAD.

    Where positions are merged, documents begin at multiples of `align` in every window: each run is
    laid with PAD behind it up to a multiple, and phases are multiples too. PAD has the document
    and the type of its run, no other track and no weight.
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
        align: int = 1,
    ) -> None:
        """Open `source`; see `RunStream`, and the class for `align` ≥ 1, in bases.

        Raises UserError where `align` does not divide `sequence_length`.
        """
        if align < 1:
            raise ValueError("align must be positive")
        if sequence_length % align:
            raise UserError(
                f"data.sequence_length = {sequence_length} is not a multiple of {align}, at "
                "multiples of which packed documents begin; change one of data.sequence_length "
                "and model.window"
            )
        super().__init__(
            source,
            sequence_length,
            seed,
            augment_reverse_complement=augment_reverse_complement,
            verify=verify,
            tracks=tracks,
            among=among,
        )
        self.align = align
        self._laid_lengths = -(-self.run_lengths // align) * align
        self._length = int(self._laid_lengths.sum())
        self._cuts = Cuts.of(np.array([self._length]), sequence_length, align)
        self.windows_per_epoch = self._cuts.total
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _show(self, positions: Indices) -> Window:
        places = [divmod(position, self.windows_per_epoch) for position in positions.tolist()]
        return stack_windows([self._one(*place) for place in places])

    def prefetch(self, positions: Sequence[int]) -> None:
        """Ask for the shards under the windows, if they are of a store."""
        if self._stored:
            for position in positions:
                for part in self._parts(*divmod(position, self.windows_per_epoch)):
                    self.runs[part.run].prefetch(part.start, part.end)

    def _one(self, epoch: int, index: int) -> Window:
        parts = list(self._parts(epoch, index))
        windows = [
            pad_window(
                read_window(
                    self.runs[part.run], part.start, part.end, self.tracks, reverse=part.reverse
                ),
                part.width,
            )
            for part in parts
        ]
        joined = join_windows(windows, [part.run for part in parts])
        return pad_window(joined, self.sequence_length + 1)

    def _parts(self, epoch: int, index: int) -> Iterator[_Part]:
        """What the window is made of, in order; what lacks at its end is PAD."""
        drawn, length = self._epoch(epoch), self.sequence_length
        begin = int(drawn.order(np.array([index]))[0]) * length - drawn.phase
        start, end = max(begin, 0), min(begin + length, self._length)
        if end - start == length:
            end = min(end + 1, self._length)
        place, at = int(np.searchsorted(drawn.ends, start, side="right")), start
        while at < end:
            number, last = int(drawn.runs[place]), int(drawn.ends[place])
            stop, begun = min(end, last), last - int(self._laid_lengths[number])
            yield self._laid(number, at - begun, stop - begun, bool(drawn.reverse[place]))
            place, at = place + 1, stop

    def _laid(self, number: int, start: int, end: int, reverse: bool) -> _Part:
        """Bases [start, end) of a run as it is laid: PAD behind its last.

        `start` is never among the PAD: windows and runs begin at multiples of `align`.
        """
        run = self.runs[number]
        last = min(end, run.length)
        if reverse and run.type is SequenceType.DNA:
            return _Part(number, run.length - last, run.length - start, True, end - start)
        return _Part(number, start, last, False, end - start)

    def _draw(self, epoch: int) -> _Epoch:
        count = np.arange(len(self.runs), dtype=np.int64)
        near = -(-self.among * self.sequence_length * len(count) // self._length)
        runs = shuffled(len(count), self._key(epoch, RUN_ORDER), near)(count)
        one = np.zeros(1, dtype=np.int64)
        phase = -self._cuts.begins(one, one, words(self._key(epoch, PHASE), one))
        return _Epoch(
            order=shuffled(self.windows_per_epoch, self._key(epoch, WINDOW_ORDER), self.among),
            phase=int(phase[0]),
            runs=runs,
            ends=np.cumsum(self._laid_lengths[runs]),
            reverse=self._strands(epoch, count),
        )
