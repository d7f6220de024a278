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
from megatron_hyena.generation.carried import Carried, MixerStep, Now, Past, keep
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
    """What both kinds share. k, v [B, heads, room, head_dim]."""

    def __init__(self, mixer: Attention, rows: int, room: int) -> None:
        self.heads = mixer.heads
        self.projection, self.projection_bias = mixer.projection, mixer.projection_bias
        self.output, self.bias = mixer.output, mixer.bias
        width = mixer.projection.shape[0] // 3 // mixer.heads
        self.kv = mixer.projection.new_zeros(rows, 2, mixer.heads, room, width)
        self.rows = torch.arange(rows, device=self.kv.device)

    def select(self, rows: Tensor) -> None:
        """See `Carried.select`."""
        super().select(rows)
        self.rows = torch.arange(len(self.kv), device=self.kv.device)

    def join(self, others: Sequence[Carried]) -> None:
        """See `Carried.join`."""
        super().join(others)
        self.rows = torch.arange(len(self.kv), device=self.kv.device)

    def place(self, active_B: Tensor | None) -> Tensor | int:
        """Where in the room each row's position is written, int64 [B] or the same for all."""
        raise NotImplementedError

    def seen(self, active_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """k and v with that position, and what is added to scores [B, 1, 1, keys]."""
        raise NotImplementedError

    def step(self, x_BH: Tensor, now: Now) -> Tensor:
        """See `MixerStep.step`."""
        assert now.cos is not None and now.sin is not None
        qkv = F.linear(x_BH, self.projection, self.projection_bias)
        qkv = qkv.view(len(x_BH), self.heads, 3, -1)
        qk = qkv[:, :, :2].to(now.cos.dtype)
        qk = torch.addcmul(qk * now.cos, qk.roll(qk.shape[-1] // 2, -1), now.sin).to(x_BH.dtype)
        place = self.place(now.active_B)  # before `kv` is looked at: it may grow
        if isinstance(place, int):
            self.kv[:, 0, :, place], self.kv[:, 1, :, place] = qk[:, :, 1], qkv[:, :, 2]
        else:
            self.kv[self.rows, :, :, place] = torch.stack([qk[:, :, 1], qkv[:, :, 2]], 1)
        kv, mask = self.seen(now.active_B)
        y = F.scaled_dot_product_attention(qk[:, :, :1], kv[:, 0], kv[:, 1], attn_mask=mask)
        return F.linear(y.reshape(len(x_BH), -1), self.output, self.bias)


class AttentionStep(_Keys):
    """`A`: row b sees its first `length_B` keys."""

    names = ("kv", "length_B")

    def __init__(self, mixer: Attention, rows: int) -> None:
        super().__init__(mixer, rows, FIRST_ROOM)
        self.length_B = torch.zeros(rows, dtype=torch.int64, device=self.kv.device)
        self.longest, self.even = 0, True

    def join(self, others: Sequence[Carried]) -> None:
        """See `Carried.join`: with the same room for all."""
        steps = [one for one in (self, *others) if isinstance(one, AttentionStep)]
        room = max(one.kv.shape[3] for one in steps)
        for one in steps:
            one._widen(room)
        super().join(others)
        self._measure()

    def select(self, rows: Tensor) -> None:
        """See `Carried.select`."""
        super().select(rows)
        self._measure()

    def _measure(self) -> None:
        self.longest = int(self.length_B.max()) if len(self.length_B) else 0
        self.even = bool((self.length_B == self.longest).all())

    def _widen(self, room: int) -> None:
        missing = room - self.kv.shape[3]
        if missing > 0:
            self.kv = F.pad(self.kv, (0, 0, 0, missing))

    def place(self, active_B: Tensor | None) -> Tensor | int:
        """See `_Keys.place`: what a row that is not active writes is overwritten."""
        if self.longest >= self.kv.shape[3]:
            self._widen(2 * self.kv.shape[3])
        return self.longest if self.even else self.length_B

    def seen(self, active_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `_Keys.seen`."""
        longest, even = self.longest + 1, self.even
        mask = None
        if not even:
            hidden = torch.arange(longest, device=self.kv.device) > self.length_B[:, None]
            mask = self.kv.new_zeros(hidden.shape).masked_fill_(hidden, HIDDEN)[:, None, None]
        self.length_B = self.length_B + (1 if active_B is None else active_B)
        if active_B is None:
            self.longest = longest
        else:
            self._measure()
        return self.kv[:, :, :, :longest], mask

    def idle(self, active_B: Tensor) -> None:
        """See `MixerStep.idle`: no position sees an empty slot."""

    def take(self, past: Past) -> None:
        """See `MixerStep.take`."""
        kv = past.take().transpose(0, 1)  # [B, 2, heads, n, head_dim]
        self._widen(kv.shape[3] + FIRST_ROOM)
        if past.present is None:
            self.kv[:, :, :, : kv.shape[3]] = kv
            self.length_B.fill_(kv.shape[3])
        else:
            self.length_B = past.present.sum(1)
            for row, present in enumerate(past.present):
                self.kv[row, :, :, : int(present.sum())] = kv[row][:, :, present]
        self._measure()


class WindowStep(_Keys):
    """`W`: a ring of as many positions as the window has; empty slots take their place in it."""

    names = ("kv", "next_B", "mask")

    def __init__(self, mixer: WindowAttention, rows: int) -> None:
        assert mixer.window is not None
        super().__init__(mixer, rows, mixer.window)
        self.window = mixer.window
        self.next_B = torch.zeros(rows, dtype=torch.int64, device=self.kv.device)
        self.mask = self.kv.new_full((rows, self.window), HIDDEN)

    def place(self, active_B: Tensor | None) -> Tensor:
        """See `_Keys.place`: over the one that has left the window."""
        return self.next_B

    def seen(self, active_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `_Keys.seen`."""
        mask = self.mask.clone()
        mask[self.rows, self.next_B] = 0.0
        self.mask = keep(active_B, mask, self.mask)
        self._advance(active_B)
        return self.kv, mask[:, None, None]

    def _advance(self, active_B: Tensor | None) -> None:
        step = 1 if active_B is None else active_B.long()
        self.next_B = (self.next_B + step) % self.window

    def idle(self, active_B: Tensor) -> None:
        """See `MixerStep.idle`."""
        mask = self.mask.clone()
        mask[self.rows, self.next_B] = HIDDEN
        self.mask = keep(active_B, mask, self.mask)
        self._advance(active_B)

    def take(self, past: Past) -> None:
        """See `MixerStep.take`."""
        kv = past.take().transpose(0, 1)
        reach = kv.shape[3]
        known = min(reach, past.positions)
        self.kv[:, :, :, :reach] = kv
        self.mask[:, reach - known : reach] = 0.0
        if past.present is not None:
            there = past.present[:, past.positions - known :]
            self.mask[:, reach - known : reach].masked_fill_(~there, HIDDEN)
        self.next_B.fill_(reach % self.window)
