"""Multi-head causal attention with rotary positions; heads are split over tensor ranks.

Rows of the projection are head-major, inside a head [q | k | v]: a cut by rows keeps heads whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.linear import column_weight, output_bias, projection_bias, row_weight
from megatron_hyena.layers.mixer import Message, Mixer
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span, positions
from megatron_hyena.ops.attention import causal_attention, rotary_angles, rotate
from megatron_hyena.ops.fir import compute_dtype


class Attention(Mixer):
    """Full causal attention (sign `A`)."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.rope_base, self.rope_scaling = config.rope_base, config.rope_scaling
        self.rope_bf16 = config.rope_bf16
        self.heads = config.num_heads // provider.size
        self.window: int | None = None
        self.projection = column_weight(config, 3 * config.hidden_size, provider.size)
        self.projection_bias = projection_bias(config, 3 * config.hidden_size, provider.size)
        self.output = row_weight(config, config.hidden_size, provider.size)
        self.bias = output_bias(config)

    def forward(self, x_LBH: Tensor, span: Span | None = None) -> Tensor:
        """x [L, B, h] -> [L, B, h]; rotary angles in fp32 or wider, from 0 in each document."""
        x = self.provider.enter(x_LBH)
        qkv = F.linear(x, self.projection, self.projection_bias).view(
            *x.shape[:2], self.heads, 3, -1
        )
        y = self.attend(qkv, span or Span.alone(len(x)))
        out = F.linear(y.flatten(2), self.output)
        return self.provider.leave(out).to(x_LBH.dtype) + self.bias.to(x_LBH.dtype)

    def angles(self, place: Tensor, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of the places for heads of qkv [..., head_dim]."""
        rope = self.rope_base, compute_dtype(qkv), self.rope_scaling, self.rope_bf16
        return rotary_angles(place, qkv.shape[-1], *rope)

    def attend(self, qkv: Tensor, span: Span) -> Tensor:
        """Attention by the layer's exchange: qkv [l, B, heads, 3, head_dim] -> [l, B, heads, ..].

        `all_to_all` gives each rank all positions of a share of the heads; the others give it the
        keys and values before its own queries.
        """
        context, exchange = self.provider.context, self.provider.exchange
        if exchange == "all_to_all":
            whole = context.switch(qkv, cut=2, join=0)
            y = self.over_span(
                whole, Span(0, len(whole), span.whole, span.whole, places=span.places)
            )
            return context.switch(y, cut=0, join=2)
        return self.over_span(qkv, span)

    def over_span(self, qkv: Tensor, span: Span) -> Tensor:
        """Attention of the span's queries to its own keys and those brought from before it."""
        q, k, v = qkv.permute(3, 1, 2, 0, 4)  # each [B, heads, l, head_dim]
        place = positions(span, qkv.device)
        cos, sin = self.angles(place, qkv)
        k, v = self.with_history(rotate(k, cos, sin), v, span)
        present = span.present(history=k.shape[2] - span.length)
        y = causal_attention(rotate(q, cos, sin), k, v, self.window, span.own, present)
        return y.permute(2, 0, 1, 3)

    def with_history(self, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """k, v [B, heads, l, head_dim] with those before them in front, rotated by their ranks."""
        context, exchange = self.provider.context, self.provider.exchange
        if exchange == "halo":
            assert self.window is not None
            reach = self.window - 1
            fetched = context.halo(torch.stack([k, v]), reach, dim=3).wait()
            fetched = fetched[:, :, :, max(0, reach - span.start) :]
            return torch.cat([fetched[0], k], dim=2), torch.cat([fetched[1], v], dim=2)
        if exchange == "all_gather":
            whole = context.whole(torch.stack([k, v]), dim=3)[:, :, :, : span.start + span.length]
            return whole[0], whole[1]
        return k, v

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        width = config.hidden_size
        if exchange == "all_gather":
            return [Message("gather", 2 * width, width=1, wide=False)]
        return [Message("all_to_all", n * width, wide=False) for n in (3, 1)]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """Scores and weighted sum over the L / 2 positions seen on average, per position."""
        return 2 * length * config.hidden_size

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `Mixer.stored_rows`: q, k, v, rotated q and k, y in two layouts."""
        return 0, 7


class WindowAttention(Attention):
    """Attention to the last `attention_window` positions (sign `W`)."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.window = config.attention_window

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        reach = config.attention_window - 1
        return [Message("halo", 2 * config.hidden_size, reach, wide=False)]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """As attention, over the window."""
        return 4 * min(length, config.attention_window) * config.hidden_size

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `Attention.stored_rows`; blocks hold k and v twice."""
        return 0, 9
