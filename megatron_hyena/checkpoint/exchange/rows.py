"""Orders of the rows of projections, and filters that groups of channels share.

Ours: rows 3c, 3c + 1, 3c + 2 of a Hyena projection are the post gate x1, the pre gate x2 and v of
channel c; rows of attention are [head, (q, k, v), head_dim]. H channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.mapping import SAME, Form, rows


def split_by_head(hidden: int, heads: int) -> Form:
    """Theirs: head after head, in each all post gates, all pre gates, all v."""
    return rows(torch.arange(3 * hidden).view(heads, -1, 3).permute(0, 2, 1).reshape(-1))


def split_whole(hidden: int) -> Form:
    """Theirs: all post gates, all pre gates, all v."""
    return rows(torch.arange(3 * hidden).view(hidden, 3).t().reshape(-1))


def heads_inside(hidden: int, heads: int) -> Form:
    """Theirs, of attention: all q, all k, all v, in each head after head."""
    return rows(torch.arange(3 * hidden).view(heads, 3, -1).transpose(0, 1).reshape(-1))


def shared(ours: int, theirs: int) -> Form:
    """Ours has `ours` filters, theirs `theirs`, each for as many neighbours as stand for it."""
    if ours == theirs:
        return SAME
    repeats = ours // theirs
    return Form(lambda t: (t[::repeats],), lambda t: (t.repeat_interleave(repeats, 0),))


def is_shared(tensor: Tensor, theirs: int) -> bool:
    """Whether the filters [n, ...] are `theirs` ones, each repeated for its neighbours."""
    if len(tensor) % theirs:
        return False
    blocks = tensor.unflatten(0, (theirs, -1))
    return bool((blocks == blocks[:, :1]).all())
