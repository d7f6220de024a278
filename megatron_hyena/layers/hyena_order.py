"""Hyena of order N with long filters (arXiv:2302.10866): the seed architecture's operator.

    z_0 = v,  z_n = x_n * (h_n conv z_{n-1} + d_n z_{n-1}),  n = 1..N,  y = W_out z_N + b

Each order has its own filter h_n, of the kind that `model.hyena_filter` names. The published one
is implicit: a small sine network of the position, times an exponential window. Its positions are
divided by the fixed `max_sequence_length`, so a filter's values do not depend on the length of the
input at hand. D channels, K = length, E position features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.exchange import ALL_CHANNELS, over_channels
from megatron_hyena.layers.filters import LongFilter, filter_class, register_hyena_filter
from megatron_hyena.layers.hyena import (
    FEATURIZER_TAPS,
    HyenaMixer,
    filter_parameter,
    there_and_back,
)
from megatron_hyena.layers.linear import column_weight
from megatron_hyena.layers.mixer import Message
from megatron_hyena.layers.parameter import Cut, constant, cut_parameter, uniform
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fft_conv import fft_conv
from megatron_hyena.ops.fir import causal_fir, compute_dtype
from megatron_hyena.ops.linear import to_channel_first

BANDS = 16
FAST_DECAY, SLOW_DECAY, DECAY_TARGET = 0.3, 1.5, 1e-2


class HyenaFilter(LongFilter):
    """Implicit filter h [D, K]: Linear-sin-Linear-sin-Linear of position features, windowed.

    The hidden layers are replicated over tensor ranks, the last is cut by channel.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.length = config.max_sequence_length
        width, features = config.hyena_filter_order, 1 + 2 * BANDS
        self.weight_in = _replicated((width, features), 1 / math.sqrt(features))
        self.bias_in = _replicated((width,), 1 / math.sqrt(features))
        self.weight_mid = _replicated((width, width), 1 / math.sqrt(width))
        self.bias_mid = _replicated((width,), 1 / math.sqrt(width))
        self.frequency = cut_parameter(Cut((width,), constant(1.0), role="filter"), 1)
        bound = 1 / math.sqrt(width)
        self.weight_out = filter_parameter(
            (config.hidden_size, width), uniform(-bound, bound), provider
        )
        self.channels = config.hidden_size

    def window(self, t: Tensor, channels: slice) -> Tensor:
        """exp(-a_c t) of some of this rank's channels at positions t [K]: [D', K].

        The rates a_c run evenly from a filter that reaches beyond the longest sequence to one that
        has decayed to `DECAY_TARGET` after `FAST_DECAY` of it.
        """
        slowest, fastest = (-math.log(DECAY_TARGET) / share for share in (SLOW_DECAY, FAST_DECAY))
        rates = torch.linspace(slowest, fastest, self.channels, device=t.device, dtype=t.dtype)
        own = rates.chunk(self.provider.size)[self.provider.rank][channels]
        return torch.exp(-own[:, None] * t)

    def forward(self, length: int, dtype: torch.dtype, channels: slice = ALL_CHANNELS) -> Tensor:
        """The first `length` taps of some of this rank's channels, [D', length] in `dtype`."""
        device = self.weight_in.device
        t = torch.arange(length, device=device, dtype=dtype) / self.length
        bands = torch.linspace(1e-4, BANDS - 1, BANDS, device=device, dtype=dtype)
        angles = 2 * math.pi * t[:, None] * bands
        features = torch.cat([t[:, None], angles.cos(), -angles.sin()], dim=1)
        frequency = self.frequency.to(dtype)
        x = features @ self.weight_in.to(dtype).t() + self.bias_in.to(dtype)
        x = torch.sin(frequency * x) @ self.weight_mid.to(dtype).t() + self.bias_mid.to(dtype)
        x = self.provider.copy(torch.sin(frequency * x))
        return (self.weight_out[channels].to(dtype) @ x.t()) * self.window(t, channels)

    @staticmethod
    def copied_numbers(config: HyenaGLTConfig, length: int) -> int:
        """See `LongFilter.copied_numbers`: the last hidden layer at every position."""
        return config.hyena_filter_order * length


register_hyena_filter("implicit", HyenaFilter)


class HyenaOperator(HyenaMixer):
    """Order-N Hyena; `streams` is N + 1: the N gates x_1..x_N and v."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        self.streams = config.hyena_order + 1  # type: ignore[misc]
        super().__init__(config, provider)
        make_filter = filter_class(config.hyena_filter)
        self.filters = nn.ModuleList(
            make_filter(config, provider) for _ in range(config.hyena_order)
        )
        self.skip = filter_parameter(
            (config.hidden_size, config.hyena_order), constant(1.0), provider
        )
        self.gate = (
            column_weight(config, config.hidden_size, provider.size)
            if config.hyena_output_gate
            else None
        )
        self.taps = config.hyena_taps
        self.transform = fft_conv if config.use_fft_conv else causal_fir

    def mix(self, streams: tuple[Tensor, ...], before: tuple[Tensor, ...], span: Span) -> Tensor:
        """The recurrence over orders; the last stream is v. Gates and skips stay on the span."""
        *gates, z = streams
        with torch.autocast(z.device.type, enabled=False):
            for n, (gate, make_filter) in enumerate(zip(gates, self.filters, strict=True)):
                skip = self.skip[:, n, None, None].to(compute_dtype(z))
                z = gate * (self.filtered(make_filter, z, span) + skip * z)
        return z

    def filtered(self, make_filter: nn.Module, z_DBl: Tensor, span: Span) -> Tensor:
        """z convolved with one filter, whose taps are made only for the channels at hand."""

        def convolve(z: Tensor, channels: slice, documents: Documents | None) -> Tensor:
            taps = make_filter(min(z.shape[-1], self.taps), compute_dtype(z), channels)
            return self.transform(z.to(compute_dtype(z)), taps, documents)

        if self.provider.exchange == "local":
            return convolve(z_DBl, ALL_CHANNELS, span.own)
        if self.provider.exchange == "all_gather":
            whole = self.provider.context.whole(z_DBl, dim=2)
            held = slice(span.start, span.start + span.length)
            return convolve(whole, ALL_CHANNELS, span.whole)[..., held]
        return over_channels(self.provider.context, convolve, z_DBl, span)

    @staticmethod
    def copied_numbers(config: HyenaGLTConfig, length: int) -> int:
        """See `LongFilter.copied_numbers`: of all orders together."""
        return config.hyena_order * filter_class(config.hyena_filter).copied_numbers(config, length)

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        featurizer = HyenaMixer.featurizer_halo(config, config.hyena_order + 1)
        return [featurizer, *there_and_back(config) * config.hyena_order]

    def modulate(self, y_DBL: Tensor, x_LBH: Tensor) -> Tensor:
        """The optional output gate sigmoid(W_g x)."""
        if self.gate is None:
            return y_DBL
        return y_DBL * torch.sigmoid(to_channel_first(x_LBH, self.gate).to(y_DBL.dtype))

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """See `HyenaMixer.mixing_flops`: three transforms of length L + taps, or the taps."""
        taps = min(length, config.explicit_taps or length)
        if config.use_fft_conv:
            convolution = 3 * 2.5 * (1 + taps / length) * math.log2(max(length + taps, 2))
        else:
            convolution = 2 * taps
        featurizer = 2 * (config.hyena_order + 1) * FEATURIZER_TAPS
        return config.hidden_size * (config.hyena_order * (convolution + 8) + featurizer)

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `Mixer.stored_rows`: projections, features; per order input, output, filter."""
        gate = 2 if config.hyena_output_gate else 0
        return 2 * (config.hyena_order + 1) + 4 * config.hyena_order + gate, 1


def _replicated(shape: tuple[int, ...], bound: float) -> nn.Parameter:
    return cut_parameter(Cut(shape, uniform(-bound, bound), role="filter"), 1)
