"""Attention to both sides, for models that are not causal: the causal layers without the mask.

Weights, rotary angles and the cut over ranks are those of `layers.attention`. A window of w
positions reaches w - 1 to either side; across ranks it is fetched from the left and, in the
opposite order of the ranks, from the right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.attention import Attention, WindowAttention
from megatron_hyena.layers.mixer import Message
from megatron_hyena.layers.span import Span, positions
from megatron_hyena.ops.attention import rotate
from megatron_hyena.ops.attention_both import Keys, attention_both


class BothSidesAttention(Attention):
    """Attention to the whole document (sign `A`)."""

    def over_span(self, qkv: Tensor, span: Span) -> Tensor:
        """See `Attention.over_span`."""
        q, k, v = qkv.permute(3, 1, 2, 0, 4)  # each [B, heads, l, head_dim]
        place = positions(span, qkv.device)
        cos, sin = self.angles(place, qkv)
        k, v, first = self.around(rotate(k, cos, sin), v, span)
        stop = first + k.shape[2]
        documents = None if span.whole is None else span.whole.stretch(first, stop)
        present = None if span.places is None else span.places[:, first:stop] >= 0
        keys = Keys(k, v, span.start - first, documents, present)
        y = attention_both(rotate(q, cos, sin), keys, self.window)
        return y.permute(2, 0, 1, 3)

    def around(self, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor, int]:
        """k, v [B, heads, l, head_dim] with those of other ranks that queries see.

        Returns:
            keys and values [B, heads, more, head_dim], and the position of the first of them.
        """
        if self.provider.exchange == "all_gather":
            whole = self.provider.context.whole(torch.stack([k, v]), dim=3)
            return whole[0], whole[1], 0
        return k, v, span.start

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """Scores and weighted sum over all positions."""
        return 2 * Attention.mixing_flops(config, length)


class BothSidesWindowAttention(BothSidesAttention):
    """Attention to fewer than `attention_window` positions to either side (sign `W`)."""

    def __init__(self, config: HyenaGLTConfig, provider: object) -> None:
        super().__init__(config, provider)  # type: ignore[arg-type]
        self.window = config.attention_window

    def around(self, k: Tensor, v: Tensor, span: Span) -> tuple[Tensor, Tensor, int]:
        """See `BothSidesAttention.around`; keys beyond the ends of the sequence are cut off."""
        if self.provider.exchange != "halo":
            return k, v, span.start
        assert self.window is not None
        context, reach, own = self.provider.context, self.window - 1, torch.stack([k, v])
        left = context.halo(own, reach, dim=3)
        right = context.reversed().halo(own.flip(3), reach, dim=3)
        behind = (context.size - 1 - context.rank) * span.length
        before = left.wait()[:, :, :, max(0, reach - span.start) :]
        after = right.wait().flip(3)[:, :, :, : min(reach, behind)]
        both = torch.cat([before, own, after], dim=3)
        return both[0], both[1], span.start - before.shape[3]

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        (left,) = WindowAttention.messages(config, exchange)
        return [left, Message(left.kind, left.numbers, left.width, left.wide, backwards=True)]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """As attention, over the window to both sides."""
        return 4 * min(length, 2 * config.attention_window - 1) * config.hidden_size

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `Attention.stored_rows`; blocks hold k and v three times."""
        return 0, 11
