"""Arithmetic of merging: who opens a chunk, which slot a position reads, sums over chunks.

An axis of L positions is cut in n windows of W; each window owns K slots, so every shape is known
beforehand. A position that opens a chunk takes the next slot of its window; the positions up to the
next opening read it. Decisions are integers and never carry a gradient; the functions that move
vectors do, forwards and backwards without atomic additions: what one direction gathers, the other
sums by a product with a matrix of zeros and ones.

Shapes: n windows, W positions and K slots of a window, B rows, h channels; L = n W, M = n K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""Positions that a scan takes one after the other; blocks go side by side."""


def admit(
    wanted_nWB: Tensor, present_nWB: Tensor, slots: int, protected_nWB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which positions open a chunk, and which of them had to.

    A window's first present position must (its anchor); of the others the first K - 1 that want to
    do. Whether a position opens depends on those before it in its window and on itself; protected
    positions, of models that are not causal, come before all others and count as anchors.

    Args:
        wanted_nWB, present_nWB: bool [n, W, B]; a position that is not present never opens.
        protected_nWB: bool [n, W, B], positions that must open while there are slots.
    Returns:
        (opens, anchors), bool [n, W, B].
    """
    anchors = present_nWB & (present_nWB.cumsum(1) == 1)
    others = wanted_nWB & present_nWB & ~anchors
    if protected_nWB is None:
        return anchors | _first(others, slots - 1), anchors
    must = protected_nWB & present_nWB & ~anchors
    left = (slots - 1 - must.sum(1, keepdim=True)).clamp(min=0)
    opens = anchors | _first(must, slots - 1) | _first(others & ~must, left)
    return opens, anchors | must


def _first(chosen_nWB: Tensor, count: Tensor | int) -> Tensor:
    """The first `count` of the chosen in each window."""
    before = chosen_nWB.cumsum(1) - chosen_nWB.long()
    return chosen_nWB & (before < count)


def even_openings(window: int, slots: int, device: torch.device) -> Tensor:
    """`slots` openings spread evenly over a window, the first on its first position: bool [W]."""
    opens = torch.zeros(window, dtype=torch.bool, device=device)
    opens[torch.arange(slots, device=device) * window // slots] = True
    return opens


@dataclass(frozen=True, eq=False)
class Chunks:
    """Openings as the indices of chunks.

    Attributes:
        opens_nWB: bool.
        slot_nWB: the slot within its window that each position reads, int64; 0 before the first.
        start_nKB: place within the window of each slot's opening position, int64; 0 if empty.
        filled_nKB: whether the slot was taken, bool.
    """

    opens_nWB: Tensor
    slot_nWB: Tensor
    start_nKB: Tensor
    filled_nKB: Tensor

    @classmethod
    def of(cls, opens_nWB: Tensor, slots: int) -> Chunks:
        """The chunks of openings, at most `slots` in each window."""
        n, window, rows = opens_nWB.shape
        slot = opens_nWB.cumsum(1) - 1
        place = torch.arange(window, device=opens_nWB.device)[None, :, None].expand_as(slot)
        # Others than openings write to one more slot, which is dropped.
        target = torch.where(opens_nWB, slot, slots)
        start = torch.zeros(n, slots + 1, rows, dtype=torch.int64, device=slot.device)
        start.scatter_(1, target, place)
        number = torch.arange(slots, device=slot.device)[None, :, None]
        filled = number <= slot[:, -1:]
        return cls(opens_nWB, slot.clamp(min=0), start[:, :slots], filled)

    @property
    def slots(self) -> int:
        """K."""
        return self.start_nKB.shape[1]

    def index(self) -> Tensor:
        """The slot, of all windows' slots, that each position reads: int64 [L, B]."""
        first = torch.arange(len(self.slot_nWB), device=self.slot_nWB.device) * self.slots
        return (first[:, None, None] + self.slot_nWB).flatten(0, 1)

    def lengths(self, present_nWB: Tensor) -> Tensor:
        """Present positions that read each slot, int64 [n, K, B]."""
        n, _, rows = self.slot_nWB.shape
        count = torch.zeros(n, self.slots, rows, dtype=torch.int64, device=self.slot_nWB.device)
        count.scatter_add_(1, self.slot_nWB, (present_nWB & self._begun()).long())
        return count

    def _begun(self) -> Tensor:
        """Positions at or behind their window's first opening."""
        return self.opens_nWB.cumsum(1) > 0

    def read(self, x_MBH: Tensor) -> Tensor:
        """What each position reads of its slot: [M, B, h] -> [L, B, h]."""
        out: Tensor = _Read.apply(x_MBH, self)
        return out

    def sums(self, x_LBH: Tensor) -> Tensor:
        """The sum over the positions that read each slot: [L, B, h] -> [M, B, h]."""
        out: Tensor = _Sums.apply(x_LBH, self)
        return out

    def openings(self, x_LBH: Tensor) -> Tensor:
        """x at the position that opened each slot, 0 in empty slots: [L, B, h] -> [M, B, h]."""
        out: Tensor = _Openings.apply(x_LBH, self)
        return out

    def at_openings(self, values_LB: Tensor, empty: float | int | bool) -> Tensor:
        """The same for numbers without gradient, `empty` in empty slots: [L, B] -> [M, B]."""
        n, window, rows = self.slot_nWB.shape
        picked = values_LB.view(n, window, rows).gather(1, self.start_nKB)
        return picked.masked_fill(~self.filled_nKB, empty).flatten(0, 1)


def _rows(place_nXB: Tensor, size: int) -> Tensor:
    """Places within windows of `size` as rows of a flattened [n * size * B, h] tensor."""
    n, _, rows = place_nXB.shape
    first = torch.arange(n, device=place_nXB.device)[:, None, None] * size
    row = torch.arange(rows, device=place_nXB.device)
    return ((first + place_nXB) * rows + row).flatten()


def _gather(x: Tensor, place_nXB: Tensor, size: int) -> Tensor:
    """Rows x [n * size, B, h] at places within windows of `size`: [n * X, B, h]."""
    n, count, rows = place_nXB.shape
    picked = x.reshape(-1, x.shape[-1]).index_select(0, _rows(place_nXB, size))
    return picked.view(n * count, rows, -1)


def _summed(x: Tensor, slot_nWB: Tensor, slots: int) -> Tensor:
    """[n W, B, h] summed by slot; a slot number that no slot has counts nowhere: [n K, B, h]."""
    n, window, rows = slot_nWB.shape
    number = torch.arange(slots, device=x.device)[:, None]
    reads = slot_nWB.transpose(1, 2)[:, :, None] == number  # [n, B, K, W]
    inner = x.reshape(n, window, rows, -1).transpose(1, 2)
    return (reads.to(x.dtype) @ inner).transpose(1, 2).reshape(n * slots, rows, -1)


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: Chunks) -> Tensor:
        ctx.chunks = chunks
        return _gather(x, chunks.slot_nWB, chunks.slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        chunks: Chunks = ctx.chunks
        return _summed(grads[0], chunks.slot_nWB, chunks.slots), None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: Chunks) -> Tensor:
        ctx.chunks = chunks
        reads = chunks.slot_nWB.masked_fill(~chunks._begun(), -1)
        return _summed(x, reads, chunks.slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        chunks: Chunks = ctx.chunks
        spread = _gather(grads[0], chunks.slot_nWB, chunks.slots)
        return spread.masked_fill_(~chunks._begun().flatten(0, 1)[..., None], 0.0), None


class _Openings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: Chunks) -> Tensor:
        ctx.chunks = chunks
        picked = _gather(x, chunks.start_nKB, chunks.slot_nWB.shape[1])
        return picked.masked_fill_(~chunks.filled_nKB.flatten(0, 1)[..., None], 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        chunks: Chunks = ctx.chunks
        spread = _gather(grads[0], chunks.slot_nWB, chunks.slots)
        return spread.masked_fill_(~chunks.opens_nWB.flatten(0, 1)[..., None], 0.0), None


def straight_through(z_LBH: Tensor, confidence_LB: Tensor) -> Tensor:
    """z itself; backwards as if it were multiplied by the confidence, taken as 1 for z's gradient.

    Bengio et al., arXiv:1308.3432; Hwang et al. (H-Net), arXiv:2507.07955.
    """
    out: Tensor = _StraightThrough.apply(z_LBH, confidence_LB)
    return out


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, confidence: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        ctx.dtype = confidence.dtype
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (z,) = ctx.saved_tensors
        return grads[0], (grads[0] * z).sum(-1).to(ctx.dtype)


def scan(keep_TB: Tensor, x_TBH: Tensor) -> Tensor:
    """y_t = keep_t y_{t-1} + x_t with y_{-1} = 0, along the first axis: [T, B, h]."""
    out: Tensor = _Scan.apply(keep_TB, x_TBH)
    return out


def decay(keep_TB: Tensor) -> Tensor:
    """Product of keep up to and with each position, [T, B]: what is left there of y_{-1} = 1."""
    first = torch.zeros_like(keep_TB[..., None])
    first[0] = keep_TB[0, :, None]
    if keep_TB.requires_grad:  # `first` must not be written in place
        first = torch.cat([keep_TB[:1, :, None], torch.zeros_like(keep_TB[1:, :, None])])
    return scan(keep_TB, first)[..., 0]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keep: Tensor, x: Tensor) -> Tensor:
        y = _blocked_scan(keep, x)
        ctx.save_for_backward(keep, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        keep, y = ctx.saved_tensors
        # The gradient of x runs the other way: g_t + keep_{t+1} (that of t + 1).
        following = torch.cat([keep[1:], torch.zeros_like(keep[:1])])
        dx = _blocked_scan(following.flip(0), grads[0].flip(0)).flip(0)
        earlier = torch.cat([torch.zeros_like(y[:1]), y[:-1]])
        return (dx * earlier).sum(-1), dx


def _blocked_scan(keep: Tensor, x: Tensor) -> Tensor:
    """Inside blocks one position after the other, all blocks at once; then over the block ends."""
    length = len(x)
    if length <= BLOCK:
        y = torch.empty_like(x)
        y[0] = x[0]
        for t in range(1, length):
            torch.addcmul(x[t], keep[t, :, None], y[t - 1], out=y[t])
        return y
    missing = -length % BLOCK
    if missing:
        keep = torch.cat([keep, keep.new_ones(missing, *keep.shape[1:])])
        x = torch.cat([x, x.new_zeros(missing, *x.shape[1:])])
    keep, x = (part.unflatten(0, (-1, BLOCK)) for part in (keep, x))
    y, left = torch.empty_like(x), torch.empty_like(keep)
    y[:, 0], left[:, 0] = x[:, 0], keep[:, 0]
    for t in range(1, BLOCK):
        y[:, t] = torch.addcmul(x[:, t], keep[:, t, :, None], y[:, t - 1])
        left[:, t] = keep[:, t] * left[:, t - 1]
    ends = _blocked_scan(left[:, -1], y[:, -1])
    y[1:] += left[1:, :, :, None] * ends[:-1, None]
    return y.flatten(0, 1)[:length]
