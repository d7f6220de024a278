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
from megatron_hyena.layers.merging.router import MEMORY, Complexity, Router
from megatron_hyena.layers.merging.similarity import SMALLEST as SMALLEST_COSINE
from megatron_hyena.layers.merging.similarity import Cosine, Mlp
from megatron_hyena.layers.merging.stage import SMALLEST, MergedStage
from megatron_hyena.ops.fir import compute_dtype
from megatron_hyena.ops.merging import even_openings


class RouterStep(Carried):
    """Logits of opening a chunk.

    Carries `earlier`, what the similarity needs of the position before, and for a learned
    complexity the sums of the window and the memory of those before.
    """

    names = ("earlier", "sums", "count", "memory", "complexity")

    def __init__(self, router: Router, rows: int) -> None:
        self.router, similarity = router, router.similarity
        assert isinstance(similarity, Mlp | Cosine)
        like = similarity.pair if isinstance(similarity, Mlp) else similarity.query
        self.wide = compute_dtype(like)
        width = len(like) // 2 if isinstance(similarity, Mlp) else len(like)
        blank = torch.zeros(rows, like.shape[1], dtype=self.wide, device=like.device)
        self.earlier = blank.new_zeros(rows, width)
        self.sums, self.memory, self.count = blank, blank.clone(), blank[:, :1].clone()
        self.complexity = self._mean().expand(rows).clone()

    def _mean(self) -> Tensor:
        return self.router.rate.complexity.to(self.wide)

    def logits(self, x_BH: Tensor, now: Now) -> Tensor:
        """Of a position [B, H] in the active rows: [B]."""
        router = self.router
        x = (x_BH if now.features_BR is None else now.features_BR).to(self.wide)
        x = router.norm(x)
        logits = (router.threshold_logit - self._similarity(x, now.active_B)) / router.temperature
        if router.adaptive:
            if router.complexity is not None:
                self.sums = keep(now.active_B, self.sums + x, self.sums)
                self.count = keep(now.active_B, self.count + 1, self.count)
                complexity = self.complexity
            else:
                assert now.complexity_B is not None
                complexity = now.complexity_B.to(self.wide)
            logits = logits + router.gamma * (complexity - self._mean())
        return logits + router.rate.shift.to(self.wide)

    def _similarity(self, x_BR: Tensor, active_B: Tensor | None) -> Tensor:
        """z [B]; see `layers.merging.similarity`."""
        similarity, before = self.router.similarity, self.earlier
        if isinstance(similarity, Mlp):
            earlier, own = F.linear(x_BR, similarity.pair.to(self.wide)).chunk(2, dim=-1)
            hidden = torch.relu(before + own + similarity.bias.to(self.wide))
            z = hidden @ similarity.out.to(self.wide) + similarity.offset.to(self.wide)
        else:
            assert isinstance(similarity, Cosine)
            earlier = F.normalize(F.linear(x_BR, similarity.query.to(self.wide)), dim=-1)
            key = F.normalize(F.linear(x_BR, similarity.key.to(self.wide)), dim=-1)
            z = torch.logit((1 + (before * key).sum(-1)) / 2, eps=SMALLEST_COSINE)
        self.earlier = keep(active_B, earlier, before)
        return z

    def idle(self, active_B: Tensor) -> None:
        """An empty position passes."""
        self.earlier = self.earlier.masked_fill(active_B[:, None], 0.0)

    def close(self, closing_B: Tensor) -> None:
        """A window ends."""
        if self.router.complexity is None:
            return
        mean = self.sums / self.count.clamp(min=1.0)
        memory = MEMORY * self.memory + (1 - MEMORY) * mean
        self.memory = keep(closing_B, memory, self.memory)
        self.sums = self.sums.masked_fill(closing_B[:, None], 0.0)
        self.count = self.count.masked_fill(closing_B[:, None], 0.0)
        self._estimate(closing_B)

    def _estimate(self, rows_B: Tensor) -> None:
        """The complexity of the window that begins, from the memory."""
        estimator = self.router.complexity
        assert isinstance(estimator, Complexity)
        weight, bias, out, offset = (
            w.to(self.wide)
            for w in (
                *(estimator.weight_in, estimator.bias_in),
                *(estimator.weight_out, estimator.bias_out),
            )
        )
        hidden = torch.relu(F.linear(self.memory, weight, bias))
        self.complexity = keep(rows_B, torch.sigmoid(hidden @ out + offset), self.complexity)

    def take(self, past: Past) -> None:
        """Begin behind whole windows."""
        self.earlier = past.take()[0].to(self.wide)
        if self.router.complexity is not None:
            past.take()  # what is carried between slices; the window's own memory follows
            self.memory = past.take()[0].to(self.wide)
            self._estimate(torch.ones_like(self.earlier[:, 0], dtype=torch.bool))


class Inside(Step):
    """Blocks and stages one after the other, stepped as one layer; see `generation.decoder`."""

    def step(self, x_BH: Tensor, now: Now) -> Tensor:
        """x [B, H] of the position at hand -> [B, H]; x may be overwritten."""
        raise NotImplementedError


class StageStep(Inside):
    """Entry and exit of a stage around the steps inside.

    Carries the place in the window and the chunks opened in it, the sum and length of the chunk at
    hand, mean and length of the one before, and what positions read of the chunk at hand.
    """

    names = ("at", "opened", "sums", "length", "before", "before_length", "read")

    def __init__(self, stage: MergedStage, inside: Inside, rows: int) -> None:
        if stage.merger == "precomputed":
            raise UserError(
                "model.merger=precomputed opens chunks where a track says, which bytes that are "
                "still to be written have not; write with merger=wcc, hnet or static"
            )
        self.stage, self.inside = stage, inside
        self.window, self.slots = stage.shape.window, stage.shape.slots
        self.router = None if stage.router is None else RouterStep(stage.router, rows)
        device, dtype = stage.skip.device, stage.skip.dtype
        self.even = even_openings(self.window, min(self.slots, self.window), device)
        self.at = torch.zeros(rows, dtype=torch.int64, device=device)
        self.opened = self.at.clone()
        self.sums = torch.zeros(rows, stage.skip.shape[0], dtype=dtype, device=device)
        self.before, self.length = self.sums.clone(), self.sums[:, :1].clone()
        self.before_length = self.length.clone()
        self.read = self.sums.to(compute_dtype(self.sums))

    def parts(self) -> list[Carried]:
        """See `Carried.parts`."""
        return [self.inside, *([] if self.router is None else [self.router])]

    def step(self, x_BH: Tensor, now: Now) -> Tensor:
        """[B, H] -> [B, H] in the active rows."""
        active, probability = now.active_B, None
        if self.router is None:
            wanted = self.even[self.at]
        else:
            logits = self.router.logits(x_BH, now)
            wanted, probability = logits > 0, torch.sigmoid(logits)
        opens = (self.opened == 0) | (wanted & (self.opened < self.slots))
        if active is not None:
            opens &= active
        count = int(opens.sum())
        if count:
            self._open(x_BH, now, opens, probability, all_rows=count == len(opens))
        grown = self.sums + x_BH
        self.sums = torch.where(opens[:, None], x_BH, keep(active, grown, self.sums))
        length = keep(active, self.length + 1, self.length)
        self.length = length.masked_fill(opens[:, None], 1.0)
        self.opened = self.opened + opens
        y = x_BH + self.read.to(x_BH.dtype) + F.linear(x_BH, self.stage.skip)
        self._advance(active)
        return y

    def _open(
        self, x_BH: Tensor, now: Now, opens: Tensor, p: Tensor | None, all_rows: bool
    ) -> None:
        """A chunk begins in the rows `opens`: through the blocks inside, and smoothed."""
        ends = opens & (self.opened > 0)
        self._end_chunk(ends)
        u = self._vector(x_BH)
        z = self.inside.step(u, dataclasses.replace(now, active_B=None if all_rows else opens))
        z = z.to(self.read.dtype)
        if p is not None and self.stage.smoothing == "ema":
            gate = p.to(z.dtype).clamp(SMALLEST, 1 - SMALLEST)
            assert now.first_B is not None
            gate = gate.masked_fill(now.first_B, 1.0)[:, None]
            z = (1 - gate) * self.read + gate * z
        self.read = keep(opens, z, self.read)

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
        closing = self.at == self.window
        if bool(closing.any()):
            self._close(closing)

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
