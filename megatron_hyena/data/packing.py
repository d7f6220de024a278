"""The order of training with documents packed: sequences filled with run after run.

A document is a run of the shards: a contig or, where pieces of nothing but N (or the splits) part
it, each stretch of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.stream import (
    PHASE,
    RUN_ORDER,
    STRAND,
    WINDOW_ORDER,
    TrainingStream,
    shifted_counts,
)
from megatron_hyena.data.window import Window, join_windows, pad_window
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class _Epoch:
    """The draws of one epoch: n windows over r runs laid end to end."""

    order: npt.NDArray[np.int64]
    """[n] window shown at each position."""
    phase: int
    """Base of the string at which its first window starts."""
    runs: npt.NDArray[np.int64]
    """[r] number of the run at each place of the string."""
    ends: npt.NDArray[np.int64]
    """[r] where the run at each place, with its PAD, ends, in bases from the string's start."""
    reverse: npt.NDArray[np.bool_]
    """[r] whether the run at each place is read from the other strand."""


class PackedStream(TrainingStream):
    """Windows over all runs laid end to end, so that short runs are not lost.

    An epoch lays the runs end to end in an order of its own, each read as a whole from a strand
    of its own, and cuts the string of T bases into windows a stride of `sequence_length` apart,
    shown in a drawn order. Of T ≥ 2 L bases T // L - 1 windows are cut (L + 1 ≤ T < 2 L: one);
    the phase of the first is uniform over the fewer than 2 L bases to spare, which lie at
    the string's two ends and are the only ones that the epoch does not show.

    Where positions are merged, documents begin at multiples of `align` in every window: each run is
    laid with PAD behind it up to a multiple, which T then counts, and phases are multiples too.
    PAD has the document and the type of its run, no other track and no weight.
    """

    def __init__(
        self,
        source: Path | str,
        sequence_length: int,
        seed: int,
        *,
        augment_reverse_complement: bool = False,
        verify: bool = True,
        tracks: Sequence[str] = (),
        align: int = 1,
    ) -> None:
        """Open `source`; see `TrainingStream`, and the class for `align` ≥ 1, in bases.

        Raises UserError where all runs together do not fill a window, and where `align` does not
        divide `sequence_length`.
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
        )
        self.align = align
        self._laid_lengths = -(-self.run_lengths // align) * align
        total = int(self._laid_lengths.sum())
        counts = shifted_counts(np.array([total], dtype=np.int64), sequence_length)
        self.windows_per_epoch = int(counts[0])
        if self.windows_per_epoch == 0:
            padded = f", with documents padded to multiples of {align}" if align > 1 else ""
            raise UserError(
                f"{self.source} holds {total} bases in all{padded}, fewer than the "
                f"{sequence_length + 1} of one packed sequence; set a smaller "
                "data.sequence_length or add data"
            )
        self._spare = total - 1 - counts * sequence_length
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def _show(self, epoch: int, index: int) -> Window:
        drawn = self._epoch(epoch)
        start = drawn.phase + int(drawn.order[index]) * self.sequence_length
        end = start + self.sequence_length + 1
        parts, numbers = list[Window](), list[int]()
        place, at = int(np.searchsorted(drawn.ends, start, side="right")), start
        while at < end:
            number, last = int(drawn.runs[place]), int(drawn.ends[place])
            stop, begun = min(end, last), last - int(self._laid_lengths[number])
            parts.append(
                self._laid(number, at - begun, stop - begun, reverse=bool(drawn.reverse[place]))
            )
            numbers.append(number)
            place, at = place + 1, stop
        return join_windows(parts, numbers)

    def _laid(self, number: int, start: int, end: int, *, reverse: bool) -> Window:
        """Bases [start, end) of a run as it is laid: PAD behind its last.

        `start` is never among the PAD: windows and runs begin at multiples of `align`.
        """
        run = self.runs[number]
        last = min(end, run.length)
        if reverse and run.type is SequenceType.DNA:
            turned = run.length - last, run.length - start
            part = self._stretch(number, *turned, reverse=True)
        else:
            part = self._stretch(number, start, last, reverse=False)
        return part if last == end else pad_window(part, end - start)

    def _draw(self, epoch: int) -> _Epoch:
        runs = self._drawn_order(epoch, RUN_ORDER, len(self.runs))
        return _Epoch(
            order=self._drawn_order(epoch, WINDOW_ORDER, self.windows_per_epoch),
            phase=self.align * int(self._drawn_phases(epoch, PHASE, self._spare // self.align)[0]),
            runs=runs,
            ends=np.cumsum(self._laid_lengths[runs]),
            reverse=self._drawn_strands(epoch, STRAND, len(runs)),
        )
