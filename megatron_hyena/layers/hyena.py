"""The form that all Hyena mixers share (StripedHyena 2, arXiv:2503.01868; arXiv:2302.10866).

x1, x2, v come from three projections and a 3-tap causal featurizer:

    y = W_out (x1 * conv(x2 * v)) + b

x1 gates after the convolution and x2 before it; no activation on the gates. Rows of the
projection are interleaved (3c, 3c + 1, 3c + 2 are x1, x2, v of channel c), so a cut by rows keeps
channels whole. They differ in the convolution: `layers.striped`, `layers.hyena_order`.
D channels in all.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.exchange import ALL_CHANNELS, fir_across, over_channels
from megatron_hyena.layers.linear import column_weight, output_bias, projection_bias, row_weight
from megatron_hyena.layers.mixer import Message, Mixer
from megatron_hyena.layers.parameter import Cut, Init, cut_parameter, uniform
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fir import causal_fir
from megatron_hyena.ops.linear import from_channel_first, to_channel_first

FEATURIZER_TAPS = 3


def filter_parameter(shape: tuple[int, ...], init: Init, provider: Provider) -> nn.Parameter:
    """A filter's parameter, cut over its first dimension (channels or groups)."""
    return cut_parameter(Cut(shape, init, dim=0, role="filter"), provider.size)


def there_and_back(config: HyenaGLTConfig) -> list[Message]:
    """One convolution over all-to-all: its input and its output."""
    return [Message("all_to_all", config.hidden_size)] * 2


class HyenaMixer(Mixer):
    """Projections, featurizer, gates and output of a Hyena layer; subclasses add the convolution.

    `convolve` is the convolution of whole sequences of some of the channels; `convolve_across`
    the same of a span, with the help of the ranks on the left.
    """

    streams: ClassVar[int] = 3

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        rows = self.streams * config.hidden_size
        bound = 1 / math.sqrt(FEATURIZER_TAPS)
        self.projection = column_weight(config, rows, provider.size)
        self.featurizer = filter_parameter(
            (rows, FEATURIZER_TAPS), uniform(-bound, bound), provider
        )
        self.projection_bias = projection_bias(config, rows, provider.size)
        self.featurizer_bias = projection_bias(config, rows, provider.size)
        self.output = row_weight(config, config.hidden_size, provider.size)
        self.bias = output_bias(config)
        self.ahead = 0
        """Features of earlier positions that the convolution wants beside those of the span."""

    def convolve(self, z_DBL: Tensor, channels: slice, documents: Documents | None) -> Tensor:
        """Causal convolution of whole sequences of this rank's `channels`: [D', B, L] -> same."""
        raise NotImplementedError

    def convolve_across(self, z_DBl: Tensor, before_DBa: Tensor, span: Span) -> Tensor:
        """Causal convolution of a span by `halo` or `state`; `before` are `ahead` positions."""
        raise NotImplementedError

    def conv(self, z_DBl: Tensor, before_DBa: Tensor, span: Span) -> Tensor:
        """The causal convolution by the layer's exchange, [D, B, l] -> [D, B, l]."""
        if self.provider.exchange == "local":
            return self.convolve(z_DBl, ALL_CHANNELS, span.own)
        if self.provider.exchange == "all_to_all":
            return over_channels(self.provider.context, self.convolve, z_DBl, span)
        return self.convolve_across(z_DBl, before_DBa, span)

    def features(self, projected_DBl: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """The featurizer's outputs, and those of the `ahead` positions before."""
        # Stored as cross-correlation taps (the last is the current position), as in savanna.
        taps = self.featurizer.flip(1)
        if self.projection_bias is not None:
            projected_DBl = projected_DBl + self.projection_bias[:, None, None]
        if self.provider.exchange == "local":
            found = causal_fir(projected_DBl, taps, span.own), projected_DBl[..., :0]
        else:
            found = fir_across(self.provider.context, projected_DBl, taps, span, self.ahead)
        return found if self.featurizer_bias is None else self._biased(*found, span)

    def _biased(self, own: Tensor, before: Tensor, span: Span) -> tuple[Tensor, Tensor]:
        """The features with their bias, where there is a position."""
        assert self.featurizer_bias is not None
        bias = self.featurizer_bias[:, None, None]
        width = before.shape[-1]
        there = torch.ones_like(before[:1])
        there[..., : max(0, width - span.start)] = 0
        return own + bias, before + bias * span.mask_history(there)

    def mix(self, streams: tuple[Tensor, ...], before: tuple[Tensor, ...], span: Span) -> Tensor:
        """Combine the featurized streams, each [D, B, l]; `before` likewise of [D, B, ahead]."""
        x1, x2, v = streams
        return x1 * self.conv(x2 * v, before[1] * before[2], span)

    def modulate(self, y_DBL: Tensor, x_LBH: Tensor) -> Tensor:
        """A last gate on the mixed channels y [D, B, L]; none by default."""
        return y_DBL

    def forward(self, x_LBH: Tensor, span: Span | None = None) -> Tensor:
        """x [L, B, h] -> [L, B, h]; gates and convolutions in fp32 (fp64 for fp64)."""
        x = self.provider.enter(x_LBH)
        span = span or Span.alone(len(x))
        x = span.mask_empty(x)
        projected = to_channel_first(x, self.projection)
        streams, before = (
            part.unflatten(0, (-1, self.streams)).unbind(1)
            for part in self.features(projected, span)
        )
        y = self.modulate(self.mix(streams, before, span), x)
        out = self.provider.leave(from_channel_first(y, self.output))
        return out.to(x_LBH.dtype) + self.bias.to(x_LBH.dtype)

    @staticmethod
    def featurizer_halo(config: HyenaGLTConfig, streams: int = 3, ahead: int = 0) -> Message:
        """What the featurizer fetches."""
        width = FEATURIZER_TAPS - 1 + ahead
        return Message("halo", streams * config.hidden_size, width, wide=False)

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """Multiply-adds x 2 per position beyond the matrix products with weights."""
        return config.hidden_size * (2 * 3 * FEATURIZER_TAPS + 2)

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `Mixer.stored_rows`: projections, features, x2 * v and the convolution; y."""
        return 8, 1
