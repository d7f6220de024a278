"""Several documents in one sequence, and how convolutions keep them apart.

A batch row [L] may hold several documents end to end. All that operators need to know is where each
position stands in its own document. From that follow two wider layouts of a row, in which a plain
causal operator cannot carry anything from one document into the next:

    gaps      w zeros before each document: enough for a filter that reaches back w positions
    chunks    each document begins at a multiple of C: a chunked recurrence is reset there

A document never reads another one's numbers, not even multiplied by zero, except for the exact
zeros of a filter's Toeplitz matrix; changing one leaves the others equal to the bit.
Shapes: B rows, L positions, W >= L positions of a wider layout, n chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.ops.opaque import opaque


@dataclass(frozen=True)
class Segment:
    """Positions [start, stop) of `row`: one document, or as much of it as the rows hold."""

    row: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Placement:
    """A wider layout of the rows.

    Attributes:
        slot_BL: place of each position in the flattened wider rows, int64 [B, L].
        width: positions in a wider row.
    """

    slot_BL: Tensor
    width: int

    def spread(self, x_DBL: Tensor) -> Tensor:
        """[D, B, L] -> [D, B, W], zeros between."""
        wide: Tensor = _Spread.apply(x_DBL, self.slot_BL, self.width)
        return wide

    def collect(self, y_DBW: Tensor) -> Tensor:
        """[D, B, W] -> [D, B, L], the inverse of `spread`."""
        packed: Tensor = _Collect.apply(y_DBW, self.slot_BL)
        return packed


@dataclass(frozen=True, eq=False)
class ChunkPlacement(Placement):
    """Documents aligned to chunks.

    Attributes:
        keep_nB: 0 for a chunk that begins a document behind the row's first segment, else 1 [n, B].
        ends: per row, (first slot within the row, length) of the last chunk that holds something.
    """

    keep_nB: Tensor
    ends: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents of a batch, or of a stretch of it.

    Attributes:
        position_BL: positions since the start of the document, int64 [B, L]. A row's first one is
            not 0 if its document began before the stretch.
    """

    position_BL: Tensor
    _layouts: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_ids(cls, ids_BL: Tensor) -> Documents:
        """From the number of each position's document [B, L]; neighbours must differ in it."""
        index = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        begins = torch.zeros_like(ids_BL, dtype=torch.int64)
        begins[:, 1:] = (ids_BL[:, 1:] != ids_BL[:, :-1]) * index[1:]
        return cls(index - begins.cummax(1).values)

    def stretch(self, start: int, stop: int) -> Documents:
        """The positions [start, stop) of every row."""
        if (start, stop) == (0, self.position_BL.shape[1]):
            return self  # with the layouts made so far
        return Documents(self.position_BL[:, start:stop])

    def reversed(self) -> Documents:
        """Of the rows read from right to left: positions since the end of each document.

        A row must end where its last document does; what begins before the row ends there.
        """
        if ("reversed", 0) not in self._layouts:
            begins = self.position_BL == 0
            ends = torch.cat([begins[:, 1:], torch.ones_like(begins[:, :1])], dim=1)
            index = torch.arange(begins.shape[1], device=begins.device)
            first = (ends.flip(1) * index).cummax(1).values
            self._layouts["reversed", 0] = Documents(index - first)
        turned: Documents = self._layouts["reversed", 0]
        return turned

    def check_starts(self, multiple: int) -> Documents:
        """These documents, none of which begins elsewhere than at a multiple of `multiple`.

        Raises:
            UserError: naming the first that does.
        """
        if torch.compiler.is_compiling():
            return Documents(_check_in_graph([self.position_BL], [multiple]))
        _check_starts(self.position_BL, multiple)
        return self

    def segments(self) -> list[Segment]:
        """The runs of one document, row by row and from left to right."""
        if ("segments", 0) not in self._layouts:
            rows, length = self.position_BL.shape
            edges = [*self._starts().tolist(), rows * length]
            self._layouts["segments", 0] = [
                Segment(a // length, a % length, a % length + b - a) for a, b in pairwise(edges)
            ]
        found: list[Segment] = self._layouts["segments", 0]
        return found

    def gaps(self, width: int) -> Placement:
        """`width` zeros before each document but the row's first."""
        if ("gaps", width) not in self._layouts:
            starts, lengths = self._runs()
            self._layouts["gaps", width] = self._place(starts, lengths, lengths + width)
        placement: Placement = self._layouts["gaps", width]
        return placement

    def chunks(self, chunk: int) -> ChunkPlacement:
        """Each document begins at a multiple of `chunk`, and so does what lies behind the row."""
        if ("chunks", chunk) not in self._layouts:
            starts, lengths = self._runs()
            padded = -(-lengths // chunk) * chunk
            plain = self._place(starts, lengths, padded)
            rows, length = self.position_BL.shape
            first = plain.slot_BL.flatten()[starts]
            keep = torch.ones(rows * plain.width // chunk, device=starts.device)
            keep[first // chunk] = (starts % length == 0).to(keep.dtype)
            last = plain.slot_BL[:, -1] - torch.arange(rows, device=starts.device) * plain.width
            ends = [(slot // chunk * chunk, slot % chunk + 1) for slot in last.tolist()]
            self._layouts["chunks", chunk] = ChunkPlacement(
                plain.slot_BL, plain.width, keep.view(rows, -1).t().contiguous(), ends
            )
        placement: ChunkPlacement = self._layouts["chunks", chunk]
        return placement

    def _starts(self) -> Tensor:
        """Flattened positions at which a segment begins; every row begins one."""
        begins = self.position_BL == 0
        begins[:, 0] = True
        return begins.flatten().nonzero()[:, 0]

    def _runs(self) -> tuple[Tensor, Tensor]:
        """Flattened start and length of each segment."""
        starts = self._starts()
        return starts, torch.diff(starts, append=starts.new_tensor([self.position_BL.numel()]))

    def _place(self, starts: Tensor, lengths: Tensor, padded: Tensor) -> Placement:
        """Segments of `lengths` laid out in `padded` positions each; rows equally wide."""
        rows, length = self.position_BL.shape
        row = starts // length
        before = padded.cumsum(0) - padded
        first_of_row = before[torch.searchsorted(row, torch.arange(rows, device=row.device))]
        base = before - first_of_row[row]
        width = int((base + padded).max())
        shift = row * width + base - starts
        flat = torch.arange(rows * length, device=row.device)
        return Placement((flat + shift.repeat_interleave(lengths)).view(rows, length), width)


def _check_starts(position_BL: Tensor, multiple: int) -> None:
    begins = position_BL == 0
    begins[:, ::multiple] = False
    if begins.any():
        row, place = begins.nonzero()[0].tolist()
        raise UserError(
            f"a document begins at position {place} of row {row} of the batch, but where "
            f"positions are merged documents begin at multiples of {multiple}; pad each "
            "document to a multiple of it"
        )


def _checked(tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    _check_starts(tensors[0], numbers[0])
    return tensors[0].clone()


_check_in_graph = opaque("check_starts", _checked)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(slot)
        wide = x.new_zeros(x.shape[0], x.shape[1] * width)
        return wide.index_copy_(1, slot.flatten(), x.flatten(1)).view(*x.shape[:2], width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slot,) = ctx.saved_tensors
        packed = grads[0].flatten(1).index_select(1, slot.flatten())
        return packed.view(-1, *slot.shape), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.shape = y.shape
        return y.flatten(1).index_select(1, slot.flatten()).view(-1, *slot.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        wide = grads[0].new_zeros(ctx.shape).flatten(1)
        wide.index_copy_(1, slot.flatten(), grads[0].flatten(1))
        return wide.view(ctx.shape), None
