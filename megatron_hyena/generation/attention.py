"""Attention, one position at a time: keys and values of all positions before, or of a window.

Places of keys are turned in when they are written, so their order does not matter. Memory for all
positions doubles where it is full; nothing is copied at other steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.generation.carried import Carried, MixerStep, Now, Past
from megatron_hyena.layers.attention import Attention, WindowAttention
from megatron_hyena.ops.attention import rotary_frequencies

FIRST_ROOM = 256
"""Positions for which there is room at first."""
HIDDEN = float("-inf")


class Turn:
    """cos and sin of places, so that x cos + swapped(x) sin turns x by its place.

    `swapped` exchanges the halves of each head; the sine of the first is negative. As
    `ops.attention.rotary_angles`, in fp64 before `dtype`.
    """

    def __init__(self, config: HyenaGLTConfig, dtype: torch.dtype, device: torch.device) -> None:
        width = config.hidden_size // config.num_heads
        rate = rotary_frequencies(width, config.rope_base, config.rope_bf16, device)
        rate = rate / config.rope_scaling
        # cos(a - pi / 2) = sin(a), and cos(a + pi / 2) = -sin(a)
        self.rate, self.dtype = torch.cat([rate] * 4), dtype
        quarter = torch.full_like(rate, math.pi / 2)
        self.shift = torch.cat([0 * rate, 0 * rate, quarter, -quarter])

    def __call__(self, place_B: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, 1, head_dim] each."""
        both = torch.addcmul(self.shift, place_B[:, None, None, None].double(), self.rate)
        cos, sin = both.cos_().to(self.dtype).chunk(2, dim=-1)
        return cos, sin


class _Keys(MixerStep):
    """What both kinds share. k, v [B, heads, room, head_dim].

    Carries as `next_B` where each row's next position is written; `at` is the same as a number
    where it is one for all rows, else None.
    """

    at: int | None

    def __init__(self, mixer: Attention, rows: int, room: int) -> None:
        self.heads, self.head_dim = mixer.heads, mixer.projection.shape[0] // 3 // mixer.heads
        self.projection, self.projection_bias = mixer.projection.t(), mixer.projection_bias
        self.output, self.bias = mixer.output.t(), mixer.bias
        self.kv = mixer.projection.new_zeros(rows, 2, self.heads, room, self.head_dim)
        self.next_B = torch.zeros(rows, dtype=torch.int64, device=self.kv.device)

    def settle(self, rows: int) -> None:
        """See `Carried.settle`."""
        self.qkv = self.kv.new_zeros(rows, 3 * self.heads * self.head_dim)
        heads = self.qkv.view(rows, self.heads, 3, self.head_dim)
        self.q, self.qk, self.new_kv = heads[:, :, :1], heads[:, :, :2], heads[:, :, 1:]
        self.new_kv = self.new_kv.transpose(1, 2)
        self.halves = self.qk.unflatten(-1, (2, -1))
        self.rows = torch.arange(rows, device=self.kv.device)
        self.measure()

    def measure(self) -> None:
        """Find `at`, and the furthest place of all rows."""
        places = self.next_B.tolist()
        self.furthest = max(places, default=0)
        self.at = self.furthest if len(set(places)) == 1 else None

    def seen(self) -> tuple[Tensor, Tensor | None]:
        """k and v with the position at hand, and what is added to scores [B, 1, 1, keys]."""
        raise NotImplementedError

    def advance(self, active_B: Tensor | None) -> None:
        """The position at hand is done."""
        raise NotImplementedError

    def add(self, x_BH: Tensor, stream_BH: Tensor, now: Now) -> None:
        """See `MixerStep.add`. What a row that is not active writes is overwritten unseen."""
        self._project(x_BH, now)
        kv, mask = self.seen()
        k, v = kv.unbind(1)
        y = F.scaled_dot_product_attention(self.q, k, v, attn_mask=mask)
        stream_BH.add_(self.bias).addmm_(y.reshape(stream_BH.shape), self.output)
        self.advance(now.active_B)

    def _project(self, x_BH: Tensor, now: Now) -> None:
        """q, k and v of the position at hand; q and k turned."""
        assert now.cos is not None and now.sin is not None
        if self.projection_bias is None:
            torch.mm(x_BH, self.projection, out=self.qkv)
        else:
            torch.addmm(self.projection_bias, x_BH, self.projection, out=self.qkv)
        swapped = self.halves.flip(3).flatten(3)
        torch.addcmul(self.qk * now.cos, swapped, now.sin, out=self.qk)

    def write(self) -> None:
        """k and v of the position at hand into their place."""
        if self.at is None:
            self.kv[self.rows, :, :, self.next_B] = self.new_kv
        else:
            self.kv.select(3, self.at).copy_(self.new_kv)


class AttentionStep(_Keys):
    """`A`: row b sees its first `next_B` keys."""

    names = ("kv", "next_B")

    def __init__(self, mixer: Attention, rows: int) -> None:
        super().__init__(mixer, rows, FIRST_ROOM)

    def join(self, others: Sequence[Carried]) -> None:
        """See `Carried.join`: with the same room for all."""
        steps = [one for one in (self, *others) if isinstance(one, AttentionStep)]
        room = max(one.kv.shape[3] for one in steps)
        for one in steps:
            one._widen(room)
        super().join(others)

    def _widen(self, room: int) -> None:
        missing = room - self.kv.shape[3]
        if missing > 0:
            self.kv = F.pad(self.kv, (0, 0, 0, missing))

    def seen(self) -> tuple[Tensor, Tensor | None]:
        """See `_Keys.seen`."""
        if self.furthest >= self.kv.shape[3]:
            self._widen(2 * self.kv.shape[3])
        self.write()
        length = self.furthest + 1
        mask = None
        if self.at is None:
            hidden = torch.arange(length, device=self.kv.device) > self.next_B[:, None]
            mask = self.kv.new_zeros(hidden.shape).masked_fill_(hidden, HIDDEN)[:, None, None]
        return self.kv.narrow(3, 0, length), mask

    def advance(self, active_B: Tensor | None) -> None:
        """See `_Keys.advance`."""
        self.next_B.add_(1 if active_B is None else active_B)
        if active_B is not None:
            self.measure()
            return
        self.furthest += 1
        self.at = None if self.at is None else self.furthest

    def idle(self, active_B: Tensor) -> None:
        """See `Step.idle`: no position sees an empty slot."""

    def take(self, past: Past) -> None:
        """See `Step.take`."""
        kv = past.take().transpose(0, 1)  # [B, 2, heads, n, head_dim]
        self._widen(kv.shape[3] + FIRST_ROOM)
        if past.present is None:
            self.kv[:, :, :, : kv.shape[3]] = kv
            self.next_B.fill_(kv.shape[3])
        else:
            self.next_B.copy_(past.present.sum(1))
            for row, present in enumerate(past.present):
                self.kv[row, :, :, : int(present.sum())] = kv[row][:, :, present]
        self.measure()


class WindowStep(_Keys):
    """`W`: a ring of as many positions as the window has; empty slots take their place in it."""

    names = ("kv", "next_B", "mask")

    def __init__(self, mixer: WindowAttention, rows: int) -> None:
        assert mixer.window is not None
        super().__init__(mixer, rows, mixer.window)
        self.window = mixer.window
        self.mask = self.kv.new_full((rows, self.window), HIDDEN)

    def settle(self, rows: int) -> None:
        """See `Carried.settle`."""
        super().settle(rows)
        self.added = self.mask[:, None, None]

    def _mark(self, value: float) -> None:
        """The place at hand is seen or hidden; it was that of the position that now leaves."""
        if self.at is None:
            self.mask[self.rows, self.next_B] = value
        else:
            self.mask.select(1, self.at).fill_(value)

    def seen(self) -> tuple[Tensor, Tensor | None]:
        """See `_Keys.seen`."""
        self.write()
        self._mark(0.0)
        return self.kv, self.added

    def advance(self, active_B: Tensor | None) -> None:
        """See `_Keys.advance`."""
        self.next_B.add_(1 if active_B is None else active_B).remainder_(self.window)
        if active_B is not None:
            self.measure()
        elif self.at is not None:
            self.at = (self.at + 1) % self.window

    def idle(self, active_B: Tensor) -> None:
        """See `Step.idle`."""
        self._mark(HIDDEN)
        self.advance(active_B)

    def take(self, past: Past) -> None:
        """See `Step.take`."""
        kv = past.take().transpose(0, 1)
        reach = kv.shape[3]
        known = min(reach, past.positions)
        self.kv[:, :, :, :reach] = kv
        self.mask[:, reach - known : reach] = 0.0
        if past.present is not None:
            there = past.present[:, past.positions - known :]
            self.mask[:, reach - known : reach].masked_fill_(~there, HIDDEN)
        self.next_B.fill_(reach % self.window)
        self.measure()
