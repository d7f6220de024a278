"""Causal softmax attention with rotary positions, through `scaled_dot_product_attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_angles(positions_L: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin [L, head_dim / 2] of position * base^(-2i / head_dim), in fp32 or wider.

    RoFormer (arXiv:2104.09864) in the NeoX layout; `positions_L` is a floating tensor.
    """
    i = torch.arange(0, head_dim, 2, device=positions_L.device, dtype=positions_L.dtype)
    angles = positions_L[:, None] * base ** (-i / head_dim)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last axis of x [..., L, head_dim]; computed in cos's dtype."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Softmax attention over q, k, v [B, heads, L, head_dim]; scale 1 / sqrt(head_dim).

    Args:
        window: positions seen, the current one included; None for all before.
    """
    length = q.shape[-2]
    if window is None or window >= length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return _banded_attention(q, k, v, window)


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Blocks of `window` queries attend to their own and the previous block: linear in L."""
    length = q.shape[2]
    pad = -length % window
    q, k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, window)) for x in (q, k, v))
    k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3) for x in (k, v))
    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)[None, :]
    band = (key <= query) & (key > query - window)
    first = band & (key >= window)
    mask = band.expand(q.shape[2], -1, -1).clone()
    mask[0] = first
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.flatten(2, 3)[:, :, :length]
