"""Multi-head causal attention with rotary positions; heads are split over tensor ranks.

Rows of the projection are head-major, inside a head [q | k | v]: a cut by rows keeps heads whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.linear import column_weight, output_bias, row_weight
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.provider import Provider
from megatron_hyena.ops.attention import causal_attention, rotary_angles, rotate


class Attention(Mixer):
    """Full causal attention (sign `A`)."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.rope_base = config.rope_base
        self.heads = config.num_heads // provider.size
        self.window: int | None = None
        self.projection = column_weight(config, 3 * config.hidden_size, provider.size)
        self.output = row_weight(config, config.hidden_size, provider.size)
        self.bias = output_bias(config)

    def forward(self, x_LBH: Tensor) -> Tensor:
        """x [L, B, h] -> [L, B, h]; rotary angles in fp32 or wider, positions from 0."""
        x = self.provider.enter(x_LBH)
        length, batch, _ = x.shape
        qkv = F.linear(x, self.projection).view(length, batch, self.heads, 3, -1)
        q, k, v = qkv.permute(3, 1, 2, 0, 4)  # each [B, heads, L, head_dim]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        positions = torch.arange(length, device=x.device, dtype=wide)
        cos, sin = rotary_angles(positions, q.shape[-1], self.rope_base)
        y = causal_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, self.window)
        out = F.linear(y.permute(2, 0, 1, 3).reshape(length, batch, -1), self.output)
        return self.provider.leave(out).to(x_LBH.dtype) + self.bias.to(x_LBH.dtype)

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
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """As attention, over the window."""
        return 4 * min(length, config.attention_window) * config.hidden_size

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `Attention.stored_rows`; blocks hold k and v twice."""
        return 0, 9
