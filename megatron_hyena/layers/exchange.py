"""How layers reach the parts of a sequence that other ranks hold.

    halo        the positions just before, from the ranks on the left: filters of fixed length
    state       the modal filter's N numbers per channel, from every rank to every rank
    all_to_all  the whole sequence of a share of the channels, there and back: any filter
    all_gather  the whole sequence of everything: attention of few heads, and pieces in time
    local       nothing: the sequence is on one rank

Each is exact, forward and backward, with documents too. Which layer may use which, and which is
best, is `config.pattern.SIGNS`; what each layer sends is its `Mixer.messages`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_hyena.layers.provider import Context
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fir import causal_fir, fir_spill
from megatron_hyena.ops.modal import HandOver

Convolve = Callable[[Tensor, slice, Documents | None], Tensor]
"""(z [D', B, L], which channels these are, documents) -> [D', B, L]."""
ALL_CHANNELS = slice(None)


def fir_across(
    context: Context, z_DBl: Tensor, taps_GK: Tensor, span: Span, ahead: int = 0
) -> tuple[Tensor, Tensor]:
    """A short convolution whose first outputs need the ranks on the left.

    The halo flies while the rank's own part is computed.

    Returns:
        The outputs [D, B, l], and those of the `ahead` positions before them [D, B, ahead], 0
        where these belong to another document: a second filter's history, without a second message.
    """
    reach = taps_GK.shape[1] - 1
    pending = context.halo(z_DBl, reach + ahead)
    own = causal_fir(z_DBl, taps_GK, span.own)
    history = span.mask_history(pending.wait())
    before = causal_fir(history, taps_GK)[..., reach:]
    return add_spill(own, history[..., ahead:], taps_GK, span), before


def add_spill(own_DBl: Tensor, history_DBh: Tensor, taps_GK: Tensor, span: Span) -> Tensor:
    """Adds to a convolution's first outputs what the (masked) history contributes."""
    count = min(history_DBh.shape[-1], own_DBl.shape[-1])
    spilled = span.mask_outputs(fir_spill(history_DBh, taps_GK, count))
    total: Tensor = _AddToFirst.apply(own_DBl, spilled)
    return total


def state_across(context: Context, span: Span) -> HandOver:
    """Brings the carry of a modal filter (`ops.modal`) at the start of this rank's span.

    Each span tells what it leaves behind, were its own carry 0; what was carried into it is handed
    on, decayed over its length, if no document begins in it:

        carry_{q+1} = end_q + lambda^l carry_q
    """
    length, passes, begun_before = span.length, None, None
    if span.whole is not None and span.own is not None:
        passes = span.whole.position_BL[:, length - 1 :: length] >= length  # [B, spans]
        begun_before = (span.own.position_BL[:, 0] > 0)[:, None]

    def begin(end_DBN: Tensor, rate_DN: Tensor) -> Callable[[], Tensor]:
        decay = torch.exp(-rate_DN * length)[:, None]

        def step(carry_DBN: Tensor, left_DBN: Tensor, q: int) -> Tensor:
            kept = decay if passes is None else decay * passes[:, q, None]
            return torch.addcmul(left_DBN, kept, carry_DBN)

        pending = context.carry(end_DBN, step)
        return lambda: pending.wait() * (1.0 if begun_before is None else begun_before)

    return begin


def over_channels(context: Context, convolve: Convolve, z_DBl: Tensor, span: Span) -> Tensor:
    """All-to-all: `convolve` the whole sequence of this rank's share of the channels."""
    share = len(z_DBl) // context.size
    channels = slice(context.rank * share, (context.rank + 1) * share)
    whole = convolve(context.switch(z_DBl, cut=0, join=2), channels, span.whole)
    return context.switch(whole, cut=2, join=0)


def channel_taps(taps_GK: Tensor, width: int, channels: slice) -> Tensor:
    """Taps of some of `width` channels: [G, K] for all of them, one row per channel for a share."""
    if channels == ALL_CHANNELS:
        return taps_GK
    return taps_GK.repeat_interleave(width // len(taps_GK), dim=0)[channels]


class _AddToFirst(torch.autograd.Function):
    """y [..., l] and s [..., w] -> y with s added to its first w positions.

    Written out because the gradients of slices would each be padded to full length and added.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, spilled: Tensor) -> Tensor:
        ctx.width = spilled.shape[-1]
        total = own.clone()
        total[..., : ctx.width] += spilled
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0][..., : ctx.width]
