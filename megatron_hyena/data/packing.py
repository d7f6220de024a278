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
from megatron_hyena.data.window import Window, join_windows
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
    """[r] where the run at each place ends, in bases from the string's start."""
    reverse: npt.NDArray[np.bool_]
    """[r] whether the run at each place is read from the other strand."""


class PackedStream(TrainingStream):
    """Windows over all runs laid end to end, so that short runs are not lost.

    An epoch lays the runs end to end in an order of its own, each read as a whole from a strand
    of its own, and cuts the string of T bases into windows a stride of `sequence_length` apart,
    shown in a drawn order. Of T ≥ 2 L bases T // L - 1 windows are cut (L + 1 ≤ T < 2 L: one);
    the phase of the first is uniform over the fewer than 2 L bases to spare, which lie at
    the string's two ends and are the only ones that the epoch does not show.
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
    ) -> None:
        """Open `source`; see `TrainingStream`.

        Raises UserError where all runs together do not fill a window.
        """
        super().__init__(
            source,
            sequence_length,
            seed,
            augment_reverse_complement=augment_reverse_complement,
            verify=verify,
            tracks=tracks,
        )
        total = int(self.run_lengths.sum())
        counts = shifted_counts(np.array([total], dtype=np.int64), sequence_length)
        self.windows_per_epoch = int(counts[0])
        if self.windows_per_epoch == 0:
            raise UserError(
                f"{self.source} holds {total} bases in all, fewer than the {sequence_length + 1} "
                "of one packed sequence; set a smaller data.sequence_length or add data"
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
            stop = min(end, last)
            reverse = bool(drawn.reverse[place])
            parts.append(self._laid(number, last - stop, last - at, reverse=reverse))
            numbers.append(number)
            place, at = place + 1, stop
        return join_windows(parts, numbers)

    def _laid(self, number: int, after: int, before: int, *, reverse: bool) -> Window:
        """The bases of a run as it is laid, from `before` bases before its end to `after`."""
        run = self.runs[number]
        if reverse and run.type is SequenceType.DNA:
            return self._stretch(number, after, before, reverse=True)
        return self._stretch(number, run.length - before, run.length - after, reverse=False)

    def _draw(self, epoch: int) -> _Epoch:
        runs = self._drawn_order(epoch, RUN_ORDER, len(self.runs))
        return _Epoch(
            order=self._drawn_order(epoch, WINDOW_ORDER, self.windows_per_epoch),
            phase=int(self._drawn_phases(epoch, PHASE, self._spare)[0]),
            runs=runs,
            ends=np.cumsum(self.run_lengths[runs]),
            reverse=self._drawn_strands(epoch, STRAND, len(runs)),
        )
