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
    """Blocks of `window` queries attend to their own and the previous block: linear in L.

    The first block is plain causal attention; the others share one mask, as more heads, so that
    the fused kernels take them and no [L, 2 window] scores are stored.
    """
    heads, length = q.shape[1:3]
    pad = -length % window
    q, k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, window)) for x in (q, k, v))
    first = F.scaled_dot_product_attention(q[:, :, 0], k[:, :, 0], v[:, :, 0], is_causal=True)
    k, v = (torch.cat([x[:, :, :-1], x[:, :, 1:]], dim=3).flatten(1, 2) for x in (k, v))
    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)[None, :]
    band = (key <= query) & (key > query - window)
    rest = F.scaled_dot_product_attention(q[:, :, 1:].flatten(1, 2), k, v, attn_mask=band)
    out = torch.cat([first[:, :, None], rest.unflatten(1, (heads, -1))], dim=2)
    return out.flatten(2, 3)[:, :, :length]
