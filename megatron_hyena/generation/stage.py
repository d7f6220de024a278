"""A merged stage, one position at a time: chunks open as positions come, nothing is run twice.

The equations are those of `layers.merging.stage` and its router. Where a window closes, the slots
that no chunk took pass as empty ones, so that blocks inside are where the parallel pass has them.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.generation.carried import Carried, Now, Past, Step, keep
from megatron_hyena.generation.router import RouterStep
from megatron_hyena.layers.merging.stage import SMALLEST, MergedStage
from megatron_hyena.ops.fir import compute_dtype
from megatron_hyena.ops.merging import even_openings

INFINITE = float("inf")


class Inside(Step):
    """Blocks and stages one after the other, stepped as one layer; see `generation.decoder`."""

    def step(self, x_BH: Tensor, now: Now) -> Tensor:
        """x [B, H] of the position at hand -> [B, H]; x may be overwritten."""
        raise NotImplementedError


class StageStep(Inside):
    """Entry and exit of a stage around the steps inside.

    Carries the place in the window and the chunks opened in it, the bar that logits must pass to
    open one (a window's first position opens whatever they are, none does when all slots are
    taken), the sum and length of the chunk at hand, mean and length of the one before, and what
    positions read of the chunk at hand.
    """

    names = ("at", "opened", "bar", "sums", "length", "before", "before_length", "read")

    def __init__(self, stage: MergedStage, inside: Inside, rows: int) -> None:
        if stage.merger == "precomputed":
            raise UserError(
                "model.merger=precomputed opens chunks where a track says, which bytes that are "
                "still to be written have not; write with merger=wcc, hnet or static"
            )
        self.stage, self.inside = stage, inside
        self.window, self.slots = stage.shape.window, stage.shape.slots
        self.router = None if stage.router is None else RouterStep(stage.router, rows)
        self.smooth = self.router is not None and stage.smoothing == "ema"
        device, dtype = stage.skip.device, stage.skip.dtype
        even = even_openings(self.window, min(self.slots, self.window), device)
        self.skip = stage.skip.t()
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        self.opened = self.at.clone()
        self.sums = torch.zeros(rows, stage.skip.shape[0], dtype=dtype, device=device)
        self.before, self.length = self.sums.clone(), self.sums[:, :1].clone()
        self.before_length = self.length.clone()
        self.read = self.sums.to(compute_dtype(self.sums))
        self.even = even.to(self.read.dtype) - 0.5
        self.bar = self.read.new_full((rows,), -INFINITE)

    def parts(self) -> list[Carried]:
        """See `Carried.parts`."""
        return [self.inside, *([] if self.router is None else [self.router])]

    def step(self, x_BH: Tensor, now: Now) -> Tensor:
        """See `Inside.step`."""
        active = now.active_B
        logits = self.even[self.at] if self.router is None else self.router.logits(x_BH, now)
        opens = logits > self.bar
        if active is not None:
            opens &= active
        count = sum(opens.tolist())
        if count:
            self._open(x_BH, now, opens, logits, count == len(opens))
        self._gather(x_BH, active, opens if count else None)
        self._advance(active)
        return torch.addmm(x_BH + self.read.to(x_BH.dtype), x_BH, self.skip)

    def _open(
        self, x_BH: Tensor, now: Now, opens: Tensor, logits_B: Tensor, all_rows: bool
    ) -> None:
        """A chunk begins in the rows `opens`: through the blocks inside, and smoothed."""
        self._end_chunk(opens & (self.opened > 0))
        self.opened = self.opened + opens
        self.bar = self.bar.masked_fill(opens, 0.0)
        self.bar.masked_fill_(self.opened == self.slots, INFINITE)
        u = self._vector(x_BH)
        z = self.inside.step(u, dataclasses.replace(now, active_B=None if all_rows else opens))
        z = z.to(self.read.dtype)
        if self.smooth:
            assert now.first_B is not None
            gate = torch.sigmoid(logits_B).to(z.dtype).clamp_(SMALLEST, 1 - SMALLEST)
            z = torch.lerp(self.read, z, gate.masked_fill_(now.first_B, 1.0)[:, None])
        self.read = z if all_rows else keep(opens, z, self.read)

    def _gather(self, x_BH: Tensor, active_B: Tensor | None, opens_B: Tensor | None) -> None:
        """The position into the sum of its chunk, which begins with it in the rows `opens`."""
        sums, length = self.sums + x_BH, self.length + 1
        if opens_B is not None:
            sums = torch.where(opens_B[:, None], x_BH, sums)
            length.masked_fill_(opens_B[:, None], 1.0)
        self.sums, self.length = (
            keep(active_B, sums, self.sums),
            keep(active_B, length, self.length),
        )

    def _end_chunk(self, rows_B: Tensor) -> None:
        """The chunk at hand becomes the one before."""
        mean = self.sums / self.length.clamp(min=1)
        self.before = keep(rows_B, mean, self.before)
        self.before_length = keep(rows_B, self.length, self.before_length)

    def _vector(self, x_BH: Tensor) -> Tensor:
        """u of a chunk that opens at x; see `layers.merging.stage`."""
        stage, before = self.stage, self.before
        if stage.merge_fn == "select":
            return x_BH.clone()
        if stage.merge_fn == "mean":
            size = self.before_length
            return (before * size + x_BH) / (size + 1)
        pair = torch.cat([before, x_BH], dim=-1)
        return x_BH + F.linear(pair, stage.merge_weight, stage.merge_bias)

    def idle(self, active_B: Tensor) -> None:
        """An empty position passes in the active rows."""
        if self.router is not None:
            self.router.idle(active_B)
        self._advance(active_B)

    def _advance(self, active_B: Tensor | None) -> None:
        """The next position of the window, or the next window."""
        self.at = self.at + (1 if active_B is None else active_B.long())
        if self.window in self.at.tolist():
            self._close(self.at == self.window)

    def _close(self, closing: Tensor) -> None:
        left = (self.slots - self.opened).masked_fill(~closing, 0)
        for passed in range(int(left.max())):
            self.inside.idle(left > passed)
        self._end_chunk(closing)
        none = closing & (self.opened == 0)  # every position of the window was empty
        self.before = self.before.masked_fill(none[:, None], 0.0)
        self.before_length = self.before_length.masked_fill(none[:, None], 0.0)
        self.at = self.at.masked_fill(closing, 0)
        self.opened = self.opened.masked_fill(closing, 0)
        self.bar = self.bar.masked_fill(closing, -INFINITE)
        if self.router is not None:
            self.router.close(closing)

    def take(self, past: Past) -> None:
        """Begin behind whole windows."""
        if self.router is not None:
            self.router.take(past)
        if self.stage.merge_fn != "select":
            before = past.take()[0]
            width = self.before.shape[1]
            self.before = before[:, :width]
            if self.stage.merge_fn == "mean":
                self.before_length = before[:, width:]
        places_MB = past.take()
        self.inside.take(Past(past.state, len(places_MB), places_MB.t() >= 0))
        if self.router is not None and self.stage.smoothing == "ema":
            self.read = past.take()[:, :-1].to(self.read.dtype)
