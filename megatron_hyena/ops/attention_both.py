"""Softmax attention to both sides, within documents: no key is hidden for standing behind.

Rotary positions and scale as in `ops.attention`. B rows, l queries, K >= l keys of head_dim E.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.ops.attention import HIDDEN, HIDING_CHANNELS, hide_keys
from megatron_hyena.ops.documents import Documents, Segment
from megatron_hyena.ops.opaque import opaque


@dataclass(frozen=True, eq=False)
class Keys:
    """What queries look at.

    Attributes:
        k, v: [B, heads, K, E].
        before: keys before the first query; queries and keys stand at consecutive positions.
        documents: of the keys' positions; None for one per row.
        present: bool [B, K], False for keys that no query sees; None for all True. A query that
            sees none is undefined, but finite.
    """

    k: Tensor
    v: Tensor
    before: int = 0
    documents: Documents | None = None
    present: Tensor | None = None


def attention_both(q: Tensor, keys: Keys, window: int | None = None) -> Tensor:
    """Attention of q [B, heads, l, E] to the keys of each query's document: [B, heads, l, E].

    Args:
        window: only keys fewer than this many positions away are seen; None for all.
    """
    width, count = q.shape[-1], keys.k.shape[2]
    k, v, present = keys.k, keys.v, keys.present
    if keys.documents is not None and torch.compiler.is_compiling():
        tensors = [q, k, v, keys.documents.position_BL, *([] if present is None else [present])]
        return _in_graph(tensors, [keys.before, *([] if window is None else [window])])
    banded = window is not None and window < count
    if banded and present is None:
        present = torch.ones(len(k), count, dtype=torch.bool, device=k.device)
    if present is not None:
        q, k, v = hide_keys(q, k, v, present)
    scale = width**-0.5
    limit = window if banded else None
    if keys.documents is None:
        return _one_document(q, k, v, keys.before, limit, scale)[..., :width]
    rows: list[list[Tensor]] = [[] for _ in range(len(q))]
    for part in keys.documents.segments():
        first = max(part.start, keys.before)
        last = min(part.stop, keys.before + q.shape[2])
        if first < last:
            of_part = _of_segment(q, k, v, part, slice(first - keys.before, last - keys.before))
            rows[part.row].append(_one_document(*of_part, first - part.start, limit, scale))
    return torch.cat([torch.cat(row, dim=2) for row in rows])[..., :width]


def _body(tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    q, k, v, position, *present = tensors
    before, *window = numbers
    keys = Keys(k, v, before, Documents(position), present[0] if present else None)
    return attention_both(q, keys, window[0] if window else None)


_in_graph = opaque("attention_both", _body)


def _of_segment(
    q: Tensor, k: Tensor, v: Tensor, part: Segment, queries: slice
) -> tuple[Tensor, Tensor, Tensor]:
    row = slice(part.row, part.row + 1)
    keys = slice(part.start, part.stop)
    return q[row, :, queries], k[row, :, keys], v[row, :, keys]


def _one_document(
    q: Tensor, k: Tensor, v: Tensor, before: int, window: int | None, scale: float
) -> Tensor:
    count = k.shape[2]
    if window is None or window >= count:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    behind = count - before - q.shape[2]
    everywhere = F.pad(q, (0, 0, before, behind))
    return _banded(everywhere, k, v, window, scale)[:, :, before : before + q.shape[2]]


def _banded(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """Blocks of `window` queries attend to the blocks before, of, and behind them: linear in L.

    Keys made up beyond the ends are hidden like absent ones, in the channel that `hide_keys` added;
    all blocks share one mask, as more heads. q, k, v [B, heads, L, E + hiding channels].
    """
    heads, length = q.shape[1:3]
    pad = -length % window
    q = F.pad(q, (0, 0, 0, pad)).unflatten(2, (-1, window))
    k, v = (F.pad(x, (0, 0, window, window + pad)) for x in (k, v))
    hidden = torch.zeros_like(k[0, 0])
    hidden[:, -HIDING_CHANNELS] = HIDDEN / scale
    hidden[window : window + length] = 0.0
    k, v = (x.unflatten(2, (-1, window)) for x in (k + hidden, v))
    k, v = (
        torch.cat([x[:, :, :-2], x[:, :, 1:-1], x[:, :, 2:]], dim=3).flatten(1, 2) for x in (k, v)
    )
    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(3 * window, device=q.device)[None, :]
    band = (key - query).abs() < window
    out = F.scaled_dot_product_attention(q.flatten(1, 2), k, v, attn_mask=band, scale=scale)
    return out.unflatten(1, (heads, -1)).flatten(2, 3)[:, :, :length]
