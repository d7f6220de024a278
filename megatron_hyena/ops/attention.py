"""Causal softmax attention with rotary positions, through `scaled_dot_product_attention`.

Keys may begin before the queries: the last query sees the last key. Documents are attended one by
one, so that none can touch another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.opaque import opaque

HIDDEN = -1e4
"""Added to the score of a hidden key: its weight is exactly 0 in every precision."""
HIDING_CHANNELS = 8
"""Channels added to hide keys: one is used, but fused kernels want multiples of 8."""
MASK_ELEMENTS = 1 << 26
"""Largest mask made where the keys begin before the queries; queries are taken in blocks."""


def rotary_frequencies(
    head_dim: int, base: float, rounded: bool = False, device: torch.device | None = None
) -> Tensor:
    """base^(-2i / head_dim), i = 0 .. head_dim / 2 - 1, fp64; `rounded` to bf16."""
    i = torch.arange(0, head_dim, 2, device=device, dtype=torch.float64)
    exact = base ** (-i / head_dim)
    return exact.float().bfloat16().double() if rounded else exact


def rotary_angles(
    positions: Tensor,
    head_dim: int,
    base: float,
    dtype: torch.dtype,
    scaling: float = 1.0,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """cos and sin [..., L, head_dim / 2] of position / scaling * base^(-2i / head_dim), in `dtype`.

    `rounded`: see `rotary_frequencies`.

    RoFormer (arXiv:2104.09864) in the NeoX layout. `positions` [..., L] are integers; angles are
    fp64, since fp32 knows those of a chromosome's end to a radian only.
    """
    frequencies = rotary_frequencies(head_dim, base, rounded, positions.device)
    angles = positions[..., None].double() / scaling * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last axis of x [..., L, head_dim]; computed in cos's dtype."""
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    documents: Documents | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """Softmax attention of q [B, heads, L, head_dim] over k, v [B, heads, h + L, head_dim].

    The h first keys stand before the first query; scale 1 / sqrt(head_dim).

    Args:
        window: positions seen, the current one included; None for all before.
        documents: of the queries; keys of another document are not seen.
        present: bool [B, h + L], False for keys that no query sees; None for all True. A query
            that sees none is undefined.
    Returns:
        [B, heads, L, head_dim].
    """
    width = q.shape[-1]
    if documents is not None and torch.compiler.is_compiling():
        tensors = [q, k, v, documents.position_BL, *([] if present is None else [present])]
        return _in_graph(tensors, [] if window is None else [window])
    if present is not None:
        q, k, v = hide_keys(q, k, v, present)
    attend = partial(_one_document, window=window, scale=width**-0.5)
    return _by_document(attend, q, k, v, documents)[..., :width]


def _body(tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    q, k, v, position, *present = tensors
    window = numbers[0] if numbers else None
    return causal_attention(q, k, v, window, Documents(position), present[0] if present else None)


_in_graph = opaque("causal_attention", _body)


def hide_keys(q: Tensor, k: Tensor, v: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One more channel, 1 in queries and `HIDDEN` in hidden keys, does what a mask would.

    Fused causal kernels take no mask besides. v is widened because they want equal widths.
    """
    q, k, v = (F.pad(x, (0, HIDING_CHANNELS)) for x in (q, k, v))
    width = q.shape[-1] - HIDING_CHANNELS
    first = torch.zeros(q.shape[-1], dtype=q.dtype, device=q.device)
    first[width] = 1.0
    least = max(HIDDEN * width**0.5, torch.finfo(k.dtype).min / 2)
    hidden = (~present).to(k.dtype)[:, None, :, None] * least
    return q + first, k + hidden * first, v


def _by_document(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents | None,
) -> Tensor:
    if documents is None:
        return attend(q, k, v)
    history = k.shape[2] - q.shape[2]
    rows: list[list[Tensor]] = [[] for _ in range(len(q))]
    for part in documents.segments():
        seen = 0
        if part.start == 0:
            seen = min(history, int(documents.position_BL[part.row, 0]))
        row = slice(part.row, part.row + 1)
        keys = slice(history + part.start - seen, history + part.stop)
        queries = q[row, :, part.start : part.stop]
        rows[part.row].append(attend(queries, k[row, :, keys], v[row, :, keys]))
    return torch.cat([torch.cat(row, dim=2) for row in rows])


def _one_document(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
    history = k.shape[2] - q.shape[2]
    if window is not None and window < k.shape[2]:
        return _banded_attention(F.pad(q, (0, 0, history, 0)), k, v, window, scale)[:, :, history:]
    if history == 0:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    key = torch.arange(k.shape[2], device=q.device)
    outputs = []
    for start in range(0, q.shape[2], block := max(1, MASK_ELEMENTS // k.shape[2])):
        part = q[:, :, start : start + block]
        last = history + start + torch.arange(part.shape[2], device=q.device)
        end = history + start + part.shape[2]
        mask = key[:end] <= last[:, None]
        outputs.append(
            F.scaled_dot_product_attention(
                part, k[:, :, :end], v[:, :, :end], attn_mask=mask, scale=scale
            )
        )
    return torch.cat(outputs, dim=2)


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """Blocks of `window` queries attend to their own and the previous block: linear in L.

    The first block is plain causal attention; the others share one mask, as more heads, so that
    the fused kernels take them and no [L, 2 window] scores are stored.
    """
    heads, length = q.shape[1:3]
    pad = -length % window
    q, k, v = (F.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, window)) for x in (q, k, v))
    first = F.scaled_dot_product_attention(
        q[:, :, 0], k[:, :, 0], v[:, :, 0], is_causal=True, scale=scale
    )
    k, v = (torch.cat([x[:, :, :-1], x[:, :, 1:]], dim=3).flatten(1, 2) for x in (k, v))
    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)[None, :]
    band = (key <= query) & (key > query - window)
    rest = F.scaled_dot_product_attention(
        q[:, :, 1:].flatten(1, 2), k, v, attn_mask=band, scale=scale
    )
    out = torch.cat([first[:, :, None], rest.unflatten(1, (heads, -1))], dim=2)
    return out.flatten(2, 3)[:, :, :length]
