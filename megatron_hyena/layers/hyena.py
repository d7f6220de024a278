"""The three Hyena mixers of StripedHyena 2 (arXiv:2503.01868): SE, MR and LI.

All share one form, with x1, x2, v from three projections and a 3-tap causal featurizer:

    y = W_out (x1 * conv(x2 * v)) + b

x1 gates after the convolution and x2 before it; no activation on the gates. Rows of the
projection are interleaved (3c, 3c + 1, 3c + 2 are x1, x2, v of channel c), so a cut by rows keeps
channels whole. They differ in `conv` only. D channels in all, G groups of channels.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from megatron_hyena.config.model import MR_SLOWEST_DECAY, HyenaGLTConfig
from megatron_hyena.layers.exchange import (
    ALL_CHANNELS,
    add_spill,
    channel_taps,
    fir_across,
    over_channels,
    state_across,
)
from megatron_hyena.layers.linear import column_weight, output_bias, row_weight
from megatron_hyena.layers.mixer import Message, Mixer
from megatron_hyena.layers.parameter import Cut, Init, constant, cut_parameter, normal, uniform
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fir import causal_fir, compute_dtype
from megatron_hyena.ops.linear import from_channel_first, to_channel_first
from megatron_hyena.ops.modal import modal_conv

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
        if self.provider.exchange == "local":
            return causal_fir(projected_DBl, taps, span.own), projected_DBl[..., :0]
        return fir_across(self.provider.context, projected_DBl, taps, span, self.ahead)

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


class HyenaSE(HyenaMixer):
    """Short explicit filter: `se_filter_length` taps per group, by cross-correlation."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        taps = config.se_filter_length
        bound = 1 / math.sqrt(taps)
        self.taps = filter_parameter((config.groups, taps), uniform(-bound, bound), provider)
        self.ahead = taps - 1 if provider.exchange == "halo" else 0

    def convolve(self, z_DBL: Tensor, channels: slice, documents: Documents | None) -> Tensor:
        """z_t = sum_j w[g, j] z[t - (K - 1) + j]."""
        taps = channel_taps(self.taps.flip(1), len(self.featurizer) // 3, channels)
        return causal_fir(z_DBL, taps, documents)

    def convolve_across(self, z_DBl: Tensor, before_DBa: Tensor, span: Span) -> Tensor:
        """One message for featurizer and filter: the history comes with the features."""
        taps = self.taps.flip(1)
        return add_spill(causal_fir(z_DBl, taps, span.own), before_DBa, taps, span)

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        if exchange == "halo":
            return [HyenaMixer.featurizer_halo(config, ahead=config.se_filter_length - 1)]
        return [HyenaMixer.featurizer_halo(config), *there_and_back(config)]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """See `HyenaMixer.mixing_flops`."""
        extra = 2 * config.se_filter_length * config.hidden_size
        return HyenaMixer.mixing_flops(config, length) + extra


class HyenaMR(HyenaMixer):
    """Medium regularised filter: f[g, k] = h[g, k] exp(-r_g k / (K - 1)), plus a skip.

    The rates r_g are spaced evenly in logarithm from the configured slowest to 100 over *all*
    groups, whatever the layout, and over the filter's own K taps, whatever the sequence length.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        taps, groups = config.mr_filter_length, config.groups
        self.taps = filter_parameter((groups, taps), normal(1e-5 / math.sqrt(taps)), provider)
        self.skip = filter_parameter((config.hidden_size,), constant(1.0), provider)
        self.groups, self.slowest = groups, MR_SLOWEST_DECAY[config.mr_decay]

    def decay(self, dtype: torch.dtype) -> Tensor:
        """exp(-r_g k / (K - 1)) of this rank's groups, [G / size, K]."""
        device, taps = self.taps.device, self.taps.shape[1]
        rates = torch.logspace(self.slowest, 2, self.groups, device=device, dtype=dtype)
        rates = rates.chunk(self.provider.size)[self.provider.rank]
        lags = torch.arange(taps, device=device, dtype=dtype) / max(taps - 1, 1)
        return torch.exp(-rates[:, None] * lags)

    def convolve(self, z_DBL: Tensor, channels: slice, documents: Documents | None) -> Tensor:
        """sum_k f[g, k] z[t - k] + skip z[t]."""
        z = z_DBL.to(compute_dtype(z_DBL))
        taps = channel_taps(self.regularised(z.dtype), len(self.skip), channels)
        return causal_fir(z, taps, documents) + self.skipped(z, channels)

    def convolve_across(self, z_DBl: Tensor, before_DBa: Tensor, span: Span) -> Tensor:
        """A message of its own: K - 1 positions of z are less than 3 (K + 1) of its factors."""
        z = z_DBl.to(compute_dtype(z_DBl))
        filtered, _ = fir_across(self.provider.context, z, self.regularised(z.dtype), span)
        return filtered + self.skipped(z, ALL_CHANNELS)

    def regularised(self, dtype: torch.dtype) -> Tensor:
        """The taps f of this rank's groups, [G / size, K]."""
        return self.taps.to(dtype) * self.decay(dtype)

    def skipped(self, z_DBL: Tensor, channels: slice) -> Tensor:
        """skip z[t] of this rank's `channels`."""
        return self.skip[channels].to(z_DBL.dtype)[:, None, None] * z_DBL

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        if exchange == "halo":
            halo = Message("halo", config.hidden_size, config.mr_filter_length - 1)
            return [HyenaMixer.featurizer_halo(config), halo]
        return [HyenaMixer.featurizer_halo(config), *there_and_back(config)]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """See `HyenaMixer.mixing_flops`."""
        extra = 2 * config.mr_filter_length * config.hidden_size
        return HyenaMixer.mixing_flops(config, length) + extra

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `HyenaMixer.stored_rows`; also its skip's input."""
        return 9, 1


class HyenaLI(HyenaMixer):
    """Long implicit filter: the sum of `li_modes` real exponentials, plus a skip.

    h[c, t] = sum_n R[c, n] exp(-exp(log_rate[c, n]) t); `log_rate` is the sum p + gamma of the
    published parametrisation, whose two parts no loss can tell apart.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        shape = (config.hidden_size, config.li_modes)
        self.log_rate = filter_parameter(shape, _initial_log_rate, provider)
        self.residue = filter_parameter(shape, normal(0.1 / math.sqrt(config.li_modes)), provider)
        self.skip = filter_parameter((config.hidden_size,), constant(1.0), provider)

    def convolve(self, z_DBL: Tensor, channels: slice, documents: Documents | None) -> Tensor:
        """See `ops.modal`."""
        modes = (self.log_rate[channels], self.residue[channels], self.skip[channels])
        return modal_conv(z_DBL, *modes, documents=documents)

    def convolve_across(self, z_DBl: Tensor, before_DBa: Tensor, span: Span) -> Tensor:
        """N numbers per channel cross from span to span."""
        modes = (self.log_rate, self.residue, self.skip)
        hand_over = state_across(self.provider.context, span)
        return modal_conv(z_DBl, *modes, documents=span.own, hand_over=hand_over)

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        if exchange == "state":
            state = Message("gather", config.hidden_size * config.li_modes)
            return [HyenaMixer.featurizer_halo(config), state]
        return [HyenaMixer.featurizer_halo(config), *there_and_back(config)]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """See `HyenaMixer.mixing_flops`: counted as the recurrence, 4 per mode."""
        extra = 4 * config.li_modes * config.hidden_size
        return HyenaMixer.mixing_flops(config, length) + extra

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `HyenaMixer.stored_rows`; also its skip's input and chunk states."""
        return 10, 1


def _initial_log_rate(full: Tensor, generator: torch.Generator) -> None:
    """p = -1 and gamma = log U(0.01, 0.1): time constants of 27 to 270 positions."""
    full.uniform_(0.01, 0.1, generator=generator).log_().sub_(1.0)
