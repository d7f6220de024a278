"""Mixers of models that are not causal: every position sees its whole document.

A causal mixer becomes two of its kind, each with weights of its own, back to back:

    y = (f(x) + flip(g(flip(x)))) / sqrt(2)

so that y varies as one mixer's output would. The second runs on the very same operators: its
provider turns the sequence round behind `enter` and back before `leave`, where a rank holds its
whole span, and its context counts the ranks from the other end. Attention needs no second one:
`layers.attention_both`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from torch import Tensor

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.attention import Attention, WindowAttention
from megatron_hyena.layers.attention_both import BothSidesAttention, BothSidesWindowAttention
from megatron_hyena.layers.mixer import Message, Mixer
from megatron_hyena.layers.provider import Context, Provider
from megatron_hyena.layers.span import Span

SHARE = 1 / math.sqrt(2)
"""Of each direction in the sum."""


class Backwards:
    """A `layers.provider.Provider` inside which sequences are read from right to left.

    Outside, the residual stream keeps its order; between `enter` and `leave` position 0 is the
    span's last, and the context's first rank holds the end of the sequence.
    """

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.rank, self.size = provider.rank, provider.size
        self.context: Context = provider.context.reversed()
        self.stream: Context = provider.stream
        self.exchange = provider.exchange
        self.sequence_multiple = provider.sequence_multiple

    def of_layer(self, kind: str) -> Backwards:
        """See `Provider.of_layer`."""
        return Backwards(self.provider.of_layer(kind))

    def enter(self, x_LBH: Tensor) -> Tensor:
        """See `Provider.enter`; turned round."""
        return self.provider.enter(x_LBH).flip(0)

    def leave(self, y_LBH: Tensor) -> Tensor:
        """See `Provider.leave`; turned back."""
        return self.provider.leave(y_LBH.flip(0))

    def copy(self, x: Tensor) -> Tensor:
        """See `Provider.copy`."""
        return self.provider.copy(x)

    def cross_entropy(self, logits_LBV: Tensor, targets_LB: Tensor) -> Tensor:
        """See `Provider.cross_entropy`: position by position, so without a direction."""
        return self.provider.cross_entropy(logits_LBV, targets_LB)

    def gather_vocabulary(self, logits_LBV: Tensor) -> Tensor:
        """See `Provider.gather_vocabulary`."""
        return self.provider.gather_vocabulary(logits_LBV)


class Bidirectional(Mixer):
    """Two mixers of one kind; a subclass for each kind, see `both_ways`."""

    one: ClassVar[type[Mixer]]
    parts = 2

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.forward_mixer = self.one(config, provider)
        self.backward_mixer = self.one(config, Backwards(provider))

    def forward(self, x_LBH: Tensor, span: Span | None = None) -> Tensor:
        """x [L, B, h] -> [L, B, h]."""
        context = self.provider.context
        backwards = None if span is None else span.reversed(context.size)
        y = self.forward_mixer(x_LBH, span) + self.backward_mixer(x_LBH, backwards)
        return y * SHARE

    @classmethod
    def mixing_flops(cls, config: HyenaGLTConfig, length: int) -> float:
        """See `Mixer.mixing_flops`."""
        return 2 * cls.one.mixing_flops(config, length)

    @classmethod
    def stored_rows(cls, config: HyenaGLTConfig) -> tuple[float, float]:
        """See `Mixer.stored_rows`."""
        wide, products = cls.one.stored_rows(config)
        return 2 * wide, 2 * products + 1  # each direction gathers and stores the input

    @classmethod
    def messages(cls, config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`: the same from both sides."""
        ahead = cls.one.messages(config, exchange)
        return ahead + [dataclasses.replace(message, backwards=True) for message in ahead]


def both_ways(one: type[Mixer]) -> type[Mixer]:
    """What stands for a causal mixer in a model that is not causal."""
    if issubclass(one, WindowAttention):
        return BothSidesWindowAttention
    if issubclass(one, Attention):
        return BothSidesAttention
    return type(
        f"Bidirectional{one.__name__}", (Bidirectional,), {"one": one, "tracks": one.tracks}
    )
