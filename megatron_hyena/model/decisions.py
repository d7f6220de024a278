"""What the merged stages of a model decide along a long sequence, in coordinates of its bytes.

A decision depends on all bytes before it that the model sees, and on where windows of merging
begin; where the model is not causal, on the bytes behind it too. So the sequence is cut by a fixed
grid, whatever stretch is asked for: passes of `length` bytes begin `step` bytes apart, counted from
the first byte of the sequence, and of each pass only `step` bytes count: the last, or, where the
model is not causal, the middle. The first pass keeps its beginning too, and the last its end. All
are multiples of the model's `merging_multiple`, so no chunk crosses from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.config.alphabet import filler_id
from megatron_hyena.layers.merging.stage import Merge
from megatron_hyena.model.hyena_glt import HyenaGLT

TOKENS_AT_ONCE = 16384
"""Bytes of the passes that run side by side."""
Read = Callable[[int, int], tuple[Tensor, dict[str, Tensor]]]
"""(start, end) -> bytes int64 [end - start] and the tracks beside them, each [end - start]."""


@dataclass(frozen=True)
class Grid:
    """The passes over a sequence of `total` bytes.

    Attributes:
        behind: bytes behind those that count, in each pass but the last.
    """

    total: int
    length: int
    step: int
    behind: int = 0

    @classmethod
    def of(cls, total: int, sequence_length: int, multiple: int, causal: bool = True) -> Grid:
        """Passes of the training length, which overlap by about half.

        They are of at least two multiples, or three where the model is not causal: then a quarter
        of a pass or more stands on either side of what counts.
        """
        count = max(2 if causal else 3, sequence_length // multiple)
        behind = 0 if causal else -(-count // 4)
        step = count // 2 if causal else count - 2 * behind
        return cls(total, count * multiple, step * multiple, behind * multiple)

    @property
    def context(self) -> int:
        """Bytes before those that count, in each pass but the first."""
        return self.length - self.step - self.behind

    @property
    def last(self) -> int:
        """Number of the pass that reaches the end."""
        return max(0, -(-(self.total - self.length) // self.step))

    def passes(self, start: int, end: int) -> range:
        """Numbers of the passes whose bytes that count cover [start, end)."""
        first, last = (
            min(max(0, (byte - self.context) // self.step), self.last) for byte in (start, end - 1)
        )
        return range(first, last + 1)

    def counted(self, number: int) -> tuple[int, int]:
        """[from, to) of the sequence that counts of a pass."""
        begin = number * self.step
        end = begin + self.length - self.behind
        return (
            begin + (self.context if number else 0),
            self.total if number == self.last else end,
        )


@dataclass(frozen=True, eq=False)
class Decisions:
    """One stage along a stretch of bytes: its n positions, which are bytes or slots.

    Attributes:
        place: byte that the position stands for, int64 [n], ascending.
        opened: whether a chunk opens there, bool [n].
        wanted: whether it wanted to, bool [n].
        anchor: whether it had to, as the first of its window, bool [n].
        probability: fp64 [n]; None without a router.
        end: the first byte behind the last position.
    """

    place: Tensor
    opened: Tensor
    wanted: Tensor
    anchor: Tensor
    probability: Tensor | None
    end: int

    def chunks(self) -> tuple[Tensor, Tensor]:
        """First byte of each chunk, and the first byte behind it: int64 [m] each."""
        starts = self.place[self.opened]
        return starts, torch.cat([starts[1:], starts.new_full((1,), self.end)])[: len(starts)]


@torch.no_grad()
def decisions_along(
    model: HyenaGLT,
    read: Read,
    grid: Grid,
    start: int,
    end: int,
    watch: Callable[[list[list[int]]], Iterable[list[int]]] = iter,
) -> list[Decisions]:
    """Decisions of each stage on bytes [start, end) and on the rest of the passes that cover them.

    Args:
        model: dense, in `eval` mode.
        read: the sequence.
        grid: its passes.
        start, end: what must be covered, not empty.
        watch: wraps the batches, for a progress bar.
    """
    numbers = list(grid.passes(start, end))
    size = max(1, TOKENS_AT_ONCE // grid.length)
    parts: list[list[Decisions]] = []
    for batch in watch([numbers[i : i + size] for i in range(0, len(numbers), size)]):
        ids, tracks = _batch(read, grid, batch, filler_id(model.config))
        merges = model(ids, tracks=tracks).merges
        for row, number in enumerate(batch):
            parts.append([_of_pass(m, d, row, number, grid) for d, m in _with_depth(model, merges)])
    return [_joined(stage) for stage in zip(*parts, strict=True)]


def _with_depth(model: HyenaGLT, merges: tuple[Merge, ...]) -> list[tuple[int, Merge]]:
    return [(stage.depth, m) for stage, m in zip(model.layout.stages, merges, strict=True)]


def _batch(
    read: Read, grid: Grid, numbers: list[int], filler: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Passes as rows, bytes [B, L] and tracks; behind the end stands `filler`."""
    rows, beside = [], dict[str, list[Tensor]]()
    for number in numbers:
        begin = number * grid.step
        ids, tracks = read(begin, min(begin + grid.length, grid.total))
        rows.append(_filled(ids, grid.length, filler))
        for name, track in tracks.items():
            unknown = float("nan") if track.is_floating_point() else 0
            beside.setdefault(name, []).append(_filled(track, grid.length, unknown))
    return torch.stack(rows), {name: torch.stack(tracks) for name, tracks in beside.items()}


def _filled(values: Tensor, length: int, fill: float) -> Tensor:
    return torch.cat([values, values.new_full((length - len(values),), fill)])


def _of_pass(merge: Merge, depth: int, row: int, number: int, grid: Grid) -> Decisions:
    """The part of one row that counts, without empty slots."""
    below, first, (low, high) = merge.below, number * grid.step, grid.counted(number)
    opens = merge.chunks.opens_nWB[:, :, row]
    present = below.present[:, row].view_as(opens)
    anchor = (present & (present.cumsum(1) == 1)).flatten()
    place, opened = below.place_LB[:, row] + first, opens.flatten()
    p = None if merge.probability_LB is None else merge.probability_LB[:, row].double()
    wanted = opened
    if p is not None:
        wanted = (p > 0.5) | (opened & ~anchor)  # p may round to one half
    elif "boundaries" in below.tracks:
        wanted = below.tracks["boundaries"][:, row] > depth
    held = below.present[:, row] & (place >= low) & (place < high)
    return Decisions(
        place[held],
        opened[held],
        wanted[held],
        anchor[held],
        None if p is None else p[held],
        high,
    )


def _joined(parts: tuple[Decisions, ...]) -> Decisions:
    """Neighbouring parts of one stage as one."""
    probabilities = [part.probability for part in parts if part.probability is not None]
    return Decisions(
        torch.cat([part.place for part in parts]),
        torch.cat([part.opened for part in parts]),
        torch.cat([part.wanted for part in parts]),
        torch.cat([part.anchor for part in parts]),
        torch.cat(probabilities) if probabilities else None,
        parts[-1].end,
    )
