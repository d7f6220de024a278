"""Several corpora in shares that are chosen, which may change in stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.order import Indices, Permutation, draw_key
from megatron_hyena.data.shard_reader import Origin, Run
from megatron_hyena.data.stream import RunStream, TrainingStream
from megatron_hyena.data.window import Window, gather_windows
from megatron_hyena.errors import UserError

CYCLE = 4096
"""Windows in which each corpus has its exact share."""
_BLEND = 6
"""What a draw is for; the numbers go on from those of `data.stream` and `data.masking`."""


class BlendedStream(TrainingStream):
    """Windows of several streams, each in its share, each in its own order without a gap.

    Positions fall into cycles of `CYCLE`, in which every stream has a whole number of windows, at
    places drawn from (seed, stage, cycle). A stream's windows come in its own order, through as
    many of its epochs as its share asks for.
    """

    def __init__(
        self,
        streams: Sequence[TrainingStream],
        shares: Sequence[Sequence[float]],
        begins: Sequence[int],
        seed: int,
    ) -> None:
        """`shares`: for each stage a share of each stream, ≥ 0, scaled to a sum of 1; `begins`:
        the first position of each stage, 0 and rising.

        Raises UserError where a share is positive, but too small for a window in a cycle.
        """
        if len(shares) != len(begins) or begins[0] != 0 or list(begins) != sorted(set(begins)):
            raise ValueError("stages begin at 0 and rising positions, each with its shares")
        self.streams, self.seed = list(streams), seed
        self.source = ",".join(stream.source for stream in streams)
        self.sequence_length = streams[0].sequence_length
        self.tracks = streams[0].tracks
        self.windows_per_epoch = sum(stream.windows_per_epoch for stream in streams)
        self.bases = sum(stream.bases for stream in streams)
        self._counts = np.stack([cycle_counts(row) for row in shares])
        self._begins = np.array(begins, dtype=np.int64)
        self._cycle = lru_cache(maxsize=4)(self._draw)
        self._shown = np.zeros((len(begins), len(streams)), dtype=np.int64)
        for stage, length in enumerate(np.diff(self._begins).tolist()):
            self._shown[stage + 1] = self._shown[stage] + self._used(stage, length)

    def describe(self) -> str:
        """A line for each corpus, with its share of the windows in each stage."""
        shares = self._counts / CYCLE
        return "\n".join(
            f"{' then '.join(f'{share:.2%}' for share in shares[:, i].tolist())} of the sequences "
            f"from {stream.describe()}"
            for i, stream in enumerate(self.streams)
        )

    @property
    def origins(self) -> list[Origin]:
        """The folders of all streams."""
        return [origin for stream in self.streams for origin in stream.origins]

    @property
    def counts(self) -> Indices:
        """[stages, streams] windows of each in a cycle."""
        return self._counts

    def places(self, positions: Indices) -> tuple[Indices, Indices]:
        """([n] number of the stream, [n] position in it) of each position."""
        stages = np.searchsorted(self._begins, positions, side="right") - 1
        cycles, within = np.divmod(positions - self._begins[stages], CYCLE)
        numbers, index = np.empty((2, len(positions)), dtype=np.int64)
        for stage, cycle in np.unique(np.stack([stages, cycles]), axis=1).T.tolist():
            here = np.flatnonzero((stages == stage) & (cycles == cycle))
            of_stream, rank = self._cycle(stage, cycle)
            found = of_stream[within[here]]
            numbers[here] = found
            before = self._shown[stage, found] + cycle * self._counts[stage, found]
            index[here] = before + rank[within[here]]
        return numbers, index

    def passes(self, position: int) -> float:
        """Of the corpus that was shown most often."""
        stage = int(np.searchsorted(self._begins, position, side="right")) - 1
        shown = self._shown[stage] + self._used(stage, position - int(self._begins[stage]))
        return max(stream.passes(int(n)) for stream, n in zip(self.streams, shown, strict=True))

    def prefetch(self, positions: Sequence[int]) -> None:
        """Of each stream."""
        numbers, index = self.places(np.asarray(positions))
        for number in np.unique(numbers).tolist():
            self.streams[number].prefetch(index[numbers == number].tolist())

    def _show(self, positions: Indices) -> Window:
        numbers, index = self.places(positions)
        parts = []
        for number in np.unique(numbers).tolist():
            here = np.flatnonzero(numbers == number)
            parts.append((here, self.streams[number].windows(index[here].tolist())))
        return gather_windows(parts)

    def _draw(self, stage: int, cycle: int) -> tuple[Indices, Indices]:
        """Of each place in a cycle: the stream, and how many of its windows come before."""
        slots = Permutation(CYCLE, draw_key(self.seed, _BLEND, stage, cycle))(np.arange(CYCLE))
        of_stream = np.searchsorted(np.cumsum(self._counts[stage]), slots, side="right")
        rank = np.empty(CYCLE, dtype=np.int64)
        for number in range(len(self.streams)):
            here = of_stream == number
            rank[here] = np.arange(np.count_nonzero(here))
        return of_stream.astype(np.int64), rank

    def _used(self, stage: int, length: int) -> Indices:
        """[streams] windows that a stage of `length` positions shows."""
        whole, rest = divmod(length, CYCLE)
        of_stream, _ = self._cycle(stage, whole)
        last = np.bincount(of_stream[:rest], minlength=len(self.streams))
        return whole * self._counts[stage] + last


def cycle_counts(shares: Sequence[float]) -> Indices:
    """Windows of each corpus in a cycle, by largest remainders; they add up to `CYCLE`.

    Raises UserError for shares that are negative, all zero, or positive and below one window.
    """
    given = np.array(shares, dtype=np.float64)
    if not np.isfinite(given).all() or given.min() < 0 or given.sum() <= 0:
        raise UserError(
            f"data.weights are {' '.join(f'{share:g}' for share in shares)}; give each corpus a "
            "number from 0, and one of them more"
        )
    exact = given / given.sum() * CYCLE
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: CYCLE - int(counts.sum())]] += 1
    if ((given > 0) & (counts == 0)).any():
        least = float(given[given > 0].min() / given.sum())
        raise UserError(
            f"the weights give a corpus a share of {least:.2g}, below one window in {CYCLE}; "
            "raise it in data.weights, or set it to 0 there, or give its samples another weight in "
            "the sample sheet"
        )
    return counts


def tempered(sizes: Sequence[int], temperature: float) -> npt.NDArray[np.float64]:
    """Shares of corpora of `sizes` bases in proportion to size^(1 / `temperature`).

    1 is in proportion to size; above, small corpora have more (Conneau et al. 2020).
    """
    logs = np.log(np.array(sizes, dtype=np.float64)) / temperature
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


def by_weight(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of each weight that their folders have, in the order they come."""
    groups: dict[float, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.origin.weight if run.origin else 1.0, []).append(run)
    return list(groups.values())


def within(corpora: Sequence[int], streams: Sequence[RunStream]) -> npt.NDArray[np.float64]:
    """Share of each stream among those of its corpus, whose number is in `corpora`.

    In proportion to weight times windows of an epoch, so that in the time in which a base of
    weight 1 is shown once, one of weight w is shown w times.
    """
    origins = [stream.runs[0].origin for stream in streams]
    weights = np.array([origin.weight if origin else 1.0 for origin in origins])
    drawn = weights * np.array([stream.windows_per_epoch for stream in streams])
    return drawn / np.bincount(corpora, weights=drawn)[np.asarray(corpora)]
