"""What every order of training shares: epochs, cuts, and the windows that positions show.

Nothing here knows of ranks or workers: position p, counted over all epochs since the start of
training, is the same window everywhere, so resuming is asking for the next position, and any
position is as cheap as the first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.order import Indices, Words, draw_key, words
from megatron_hyena.data.pieces import StoredPiece
from megatron_hyena.data.shard_reader import Origin, Run, open_runs
from megatron_hyena.data.window import Window, check_tracks
from megatron_hyena.errors import UserError

WINDOW_ORDER, PHASE, STRAND, RUN_ORDER = range(4)
"""What a draw is for; those of masking go on. The numbers are part of the order of older runs."""

LONG = 16
"""Stretches of so many windows and more are cut at a phase with half a window's choice at least."""


class TrainingStream(ABC):
    """Windows of `sequence_length + 1` bytes without end, `windows_per_epoch` in each epoch.

    An epoch shows every byte of its stretches as an input exactly once. All draws are functions
    of (seed, epoch, purpose, index): see `order`.
    """

    sequence_length: int
    windows_per_epoch: int
    """Constant over the epochs."""
    source: str
    tracks: tuple[str, ...]
    bases: int
    """What an epoch shows."""

    def describe(self) -> str:
        """One line: bases and sequences of an epoch, and how much of them is padding."""
        room = self.windows_per_epoch * self.sequence_length
        return (
            f"{self.source}: {self.bases:,} bases, {self.windows_per_epoch:,} sequences of "
            f"{self.sequence_length:,} in an epoch, {1 - self.bases / room:.1%} of them padding"
        )

    def passes(self, position: int) -> float:
        """How often all of the data was shown before `position`, of the most shown corpus."""
        return position / self.windows_per_epoch

    def check_global_batch(self, global_batch_size: int) -> None:
        """Raise UserError where an epoch has fewer windows than one global batch."""
        if self.windows_per_epoch < global_batch_size:
            raise UserError(
                f"{self.source} holds {self.windows_per_epoch} sequences of "
                f"{self.sequence_length} bases, fewer than one global batch of "
                f"{global_batch_size}; set a smaller train.global_batch_size or "
                "data.sequence_length, or add data"
            )

    def window(self, position: int) -> Window:
        """Window number `position` ≥ 0 since the start of training."""
        return self.windows([position]).row(0)

    def windows(self, positions: Sequence[int]) -> Window:
        """Windows number `positions`, each ≥ 0, stacked: [n, L + 1]."""
        places = np.asarray(positions, dtype=np.int64)
        if len(places) == 0 or places.min() < 0:
            raise ValueError("positions must be given, and not be negative")
        return self._show(places)

    @property
    @abstractmethod
    def origins(self) -> list[Origin]:
        """The folders of shards that it reads, in order."""

    @abstractmethod
    def prefetch(self, positions: Sequence[int]) -> None:
        """Have what windows number `positions` need fetched soon, where that takes time."""

    @abstractmethod
    def _show(self, positions: Indices) -> Window:
        """Windows number `positions` [n] ≥ 0, n > 0, stacked."""


class RunStream(TrainingStream):
    """A stream over the runs of one source, of which the subclasses choose the order."""

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
        """Open `source`, folders of shards or a glob (see `open_runs`, also for `verify`), or
        take runs that are open, of one corpus at least.

        `seed` ≥ 0. `augment_reverse_complement` draws a strand with equal chance, of DNA alone:
        RNA and protein are of one strand. `tracks`: what windows bring beside the bases; raises
        UserError as `check_tracks` does. `among`: windows that are shuffled among one another
        (see `NearbyOrder`); 0: all of an epoch.
        """
        if sequence_length < 1 or seed < 0:
            raise ValueError("sequence_length must be positive and seed not negative")
        self.sequence_length = sequence_length
        self.seed = seed
        self.augment_reverse_complement = augment_reverse_complement
        self.tracks, self.among = tuple(tracks), among
        if isinstance(source, (str, Path)):
            self.source, self.runs = str(source), open_runs(source, verify=verify)
            check_tracks(self.runs, self.tracks, both_strands=augment_reverse_complement)
        else:
            self.source, self.runs = str(source[0].folder), list(source)
        self.run_lengths = np.array([run.length for run in self.runs], dtype=np.int64)
        self.bases = int(self.run_lengths.sum())

    @property
    def origins(self) -> list[Origin]:
        """The folders of the runs."""
        return list({id(run.origin): run.origin for run in self.runs if run.origin}.values())

    @cached_property
    def _stored(self) -> bool:
        """Whether shards are of a store."""
        return any(isinstance(piece, StoredPiece) for run in self.runs for piece in run.pieces)

    def _key(self, epoch: int, purpose: int) -> int:
        return draw_key(self.seed, epoch, purpose)

    def _strands(self, epoch: int, index: Indices) -> npt.NDArray[np.bool_]:
        """[n] whether what is numbered `index` is read from the other strand."""
        if not self.augment_reverse_complement:
            return np.zeros(len(index), dtype=np.bool_)
        return (words(self._key(epoch, STRAND), index) >> np.uint64(63)).astype(np.bool_)


@dataclass(frozen=True)
class Cuts:
    """How r stretches are cut into windows of `length` inputs, at a phase drawn for each.

    A stretch of R bytes fills n windows whatever the phase p: window k has the inputs
    [k `length` - p, (k + 1) `length` - p) of it, as far as they exist, so the first and the last
    may be short. n is the least possible; of a stretch of `LONG` windows and more it leaves half
    a window free at least, so that a drawn phase moves the edges.
    """

    length: int
    unit: int
    """Of which lengths and phases are multiples."""
    counts: Indices
    """[r] windows of each stretch."""
    ends: Indices
    """[r] cumulative sums of `counts`."""
    least: Indices
    """[r] smallest phase."""
    choices: Indices
    """[r] number of phases, `unit` apart."""

    @classmethod
    def of(cls, stretches: Indices, length: int, unit: int = 1) -> Cuts:
        """Of stretches [r] of 1 byte or more."""
        free = np.where(stretches >= LONG * length, length // unit // 2 * unit, 0)
        counts = -(-(stretches + free) // length)
        slack = counts * length - stretches
        least = np.maximum(0, slack - length + unit)
        choices = (np.minimum(slack, length - unit) - least) // unit + 1
        return cls(length, unit, counts, np.cumsum(counts), least, choices)

    @property
    def total(self) -> int:
        """Windows of all stretches."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def stretch_of(self, windows: Indices) -> Indices:
        """[n] the stretch that each window, numbered over all stretches, is cut from."""
        return np.searchsorted(self.ends, windows, side="right")

    def begins(self, windows: Indices, stretches: Indices, drawn: Words) -> Indices:
        """[n] where the windows begin in their stretches, given a drawn word for each stretch.

        A negative number: of the first window so many inputs are missing.
        """
        nth = windows - (self.ends - self.counts)[stretches]
        choice = (drawn % self.choices[stretches].astype(np.uint64)).astype(np.int64)
        return nth * self.length - (self.least[stretches] + self.unit * choice)
