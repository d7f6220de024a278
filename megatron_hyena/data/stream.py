"""What every order of training shares: draws, epochs, and the window that a position shows.

Nothing here knows of ranks or workers: position p, counted over all epochs since the start of
training, is the same window everywhere, so resuming is asking for the next position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.shard_reader import Run, open_runs
from megatron_hyena.data.window import Window, check_tracks, read_window
from megatron_hyena.errors import UserError

WINDOW_ORDER, PHASE, STRAND, RUN_ORDER = range(4)
"""What a draw is for. The numbers are part of the order of older runs: never change one."""


class TrainingStream(ABC):
    """Windows of `sequence_length + 1` bytes without end, `windows_per_epoch` in each epoch.

    All draws are raw 64-bit words of Philox (Salmon et al. 2011) seeded with (seed, epoch,
    purpose); numpy keeps these words the same in every release, unlike its permutations.
    """

    windows_per_epoch: int
    """Constant over the epochs."""

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
        """Open `source`, folders of shards or a glob (see `open_runs`, also for `verify`).

        `seed` ≥ 0. `augment_reverse_complement` draws a strand with equal chance, of DNA alone:
        RNA and protein are of one strand. `tracks`: what windows bring beside the bases; raises
        UserError as `check_tracks` does.
        """
        if sequence_length < 1 or seed < 0:
            raise ValueError("sequence_length must be positive and seed not negative")
        self.source = str(source)
        self.sequence_length = sequence_length
        self.seed = seed
        self.augment_reverse_complement = augment_reverse_complement
        self.runs: list[Run] = open_runs(source, verify=verify)
        self.tracks = tuple(tracks)
        check_tracks(self.runs, self.tracks, both_strands=augment_reverse_complement)
        self.run_lengths = np.array([run.length for run in self.runs], dtype=np.int64)

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
        if position < 0:
            raise ValueError("position must not be negative")
        return self._show(*divmod(position, self.windows_per_epoch))

    @abstractmethod
    def _show(self, epoch: int, index: int) -> Window:
        """Window number `index` of `epoch`."""

    def _stretch(self, number: int, start: int, end: int, *, reverse: bool) -> Window:
        """Bases [start, end) of a run with their tracks, on the strand drawn for them."""
        return read_window(self.runs[number], start, end, self.tracks, reverse=reverse)

    def _drawn_order(self, epoch: int, purpose: int, count: int) -> npt.NDArray[np.int64]:
        """[count] a permutation of 0 … count - 1."""
        words = self._words(epoch, purpose, count)
        return np.argsort(words, kind="stable").astype(np.int64)

    def _drawn_phases(
        self, epoch: int, purpose: int, spare: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """[n] integers, each uniform from 0 to its `spare` ≥ 0."""
        words = self._words(epoch, purpose, len(spare))
        return (words % (spare.astype(np.uint64) + np.uint64(1))).astype(np.int64)

    def _drawn_strands(self, epoch: int, purpose: int, count: int) -> npt.NDArray[np.bool_]:
        """[count] whether the other strand is read; all False without the augmentation."""
        if not self.augment_reverse_complement:
            return np.zeros(count, dtype=np.bool_)
        return (self._words(epoch, purpose, count) >> np.uint64(63)).astype(np.bool_)

    def _words(self, epoch: int, purpose: int, count: int) -> npt.NDArray[np.uint64]:
        seeds = np.random.SeedSequence(self.seed, spawn_key=(epoch, purpose))
        return np.random.Philox(seeds).random_raw(count)


def shifted_counts(lengths: npt.NDArray[np.int64], stride: int) -> npt.NDArray[np.int64]:
    """How many windows of `stride` + 1 bases, a stride apart, each stretch gives at any phase.

    R // L - 1 of R ≥ 2 L bases, one of L + 1 ≤ R < 2 L, none of fewer: at least L - 1 bases of a
    long stretch are to spare, so that a drawn phase puts the windows' edges anywhere.
    """
    whole = (lengths - 1) // stride
    return np.where(whole > 0, np.maximum(1, lengths // stride - 1), 0)
