"""The three Hyena mixers of StripedHyena 2 (arXiv:2503.01868): SE, MR and LI.

Short explicit, medium regularised and long implicit filters in the form of `layers.hyena`. D
channels in all, G groups of channels, K taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_hyena.config.model import MR_SLOWEST_DECAY, HyenaGLTConfig
from megatron_hyena.layers.exchange import (
    ALL_CHANNELS,
    add_spill,
    channel_taps,
    fir_across,
    state_across,
)
from megatron_hyena.layers.hyena import HyenaMixer, filter_parameter, there_and_back
from megatron_hyena.layers.mixer import Message
from megatron_hyena.layers.parameter import constant, normal, uniform
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fir import causal_fir, compute_dtype
from megatron_hyena.ops.modal import Turning, modal_conv


class HyenaSE(HyenaMixer):
    """Short explicit filter: `se_filter_length` taps per group, by cross-correlation.

    With `se_skip`, plus a skip.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        taps = config.se_filter_length
        bound = 1 / math.sqrt(taps)
        self.taps = filter_parameter((config.groups, taps), uniform(-bound, bound), provider)
        self.ahead = taps - 1 if provider.exchange == "halo" else 0
        width = (config.hidden_size,)
        self.skip = filter_parameter(width, constant(1.0), provider) if config.se_skip else None

    def convolve(self, z_DBL: Tensor, channels: slice, documents: Documents | None) -> Tensor:
        """z_t = sum_j w[g, j] z[t - (K - 1) + j]."""
        taps = channel_taps(self.taps.flip(1), len(self.featurizer) // 3, channels)
        return self._with_skip(causal_fir(z_DBL, taps, documents), z_DBL, channels)

    def _with_skip(self, filtered: Tensor, z_DBL: Tensor, channels: slice) -> Tensor:
        if self.skip is None:
            return filtered
        return filtered + self.skip[channels].to(filtered.dtype)[:, None, None] * z_DBL

    def convolve_across(self, z_DBl: Tensor, before_DBa: Tensor, span: Span) -> Tensor:
        """One message for featurizer and filter: the history comes with the features."""
        taps = self.taps.flip(1)
        filtered = add_spill(causal_fir(z_DBl, taps, span.own), before_DBa, taps, span)
        return self._with_skip(filtered, z_DBl, ALL_CHANNELS)

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

    With `mr_decay` of `none`, f = h.

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
        whole = mr_decay(self.slowest, self.groups, self.taps.shape[1], dtype, self.taps.device)
        return whole.chunk(self.provider.size)[self.provider.rank]

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
    """Long implicit filter: the sum of `li_modes` exponentials, plus a skip.

    h[c, t] = sum_n R[c, n] exp(-exp(log_rate[c, n]) t); `log_rate` is the sum p + gamma of the
    published parametrisation, whose two parts no loss can tell apart. With `li_poles` of
    `complex` (StripedHyena), h[c, t] = Re sum_n (R + i Q)[c, n] exp((-exp(log_rate) + i phase) t).
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        shape = (config.hidden_size, config.li_modes)
        self.log_rate = filter_parameter(shape, _initial_log_rate, provider)
        self.residue = filter_parameter(shape, normal(0.1 / math.sqrt(config.li_modes)), provider)
        self.skip = filter_parameter((config.hidden_size,), constant(1.0), provider)
        self.turns = config.li_poles == "complex"
        if self.turns:
            drawn = normal(0.1 / math.sqrt(config.li_modes))
            self.phase = filter_parameter(shape, _initial_phase, provider)
            self.residue_imaginary = filter_parameter(shape, drawn, provider)

    def turning(self, channels: slice = ALL_CHANNELS) -> Turning | None:
        """What makes the modes complex; None of real ones."""
        return (self.phase[channels], self.residue_imaginary[channels]) if self.turns else None

    def convolve(self, z_DBL: Tensor, channels: slice, documents: Documents | None) -> Tensor:
        """See `ops.modal`."""
        modes = (self.log_rate[channels], self.residue[channels], self.skip[channels])
        return modal_conv(z_DBL, *modes, documents=documents, turning=self.turning(channels))

    def convolve_across(self, z_DBl: Tensor, before_DBa: Tensor, span: Span) -> Tensor:
        """N numbers per channel cross from span to span, twice as many of complex modes."""
        modes = (self.log_rate, self.residue, self.skip)
        hand_over = state_across(self.provider.context, span)
        return modal_conv(
            z_DBl, *modes, documents=span.own, hand_over=hand_over, turning=self.turning()
        )

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`."""
        if exchange == "state":
            state = Message("gather", config.hidden_size * _numbers(config))
            return [HyenaMixer.featurizer_halo(config), state]
        return [HyenaMixer.featurizer_halo(config), *there_and_back(config)]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """See `HyenaMixer.mixing_flops`: counted as the recurrence, 4 per mode."""
        extra = 4 * _numbers(config) * config.hidden_size
        return HyenaMixer.mixing_flops(config, length) + extra

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `HyenaMixer.stored_rows`; also its skip's input and chunk states."""
        return 10, 1


def mr_decay(
    slowest: float | None,
    groups: int,
    taps: int,
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Tensor:
    """The decay of `M`'s taps, [groups, taps]; `slowest` is log10 of a rate, None for none."""
    if slowest is None:
        return torch.ones(groups, taps, device=device, dtype=dtype)
    rates = torch.logspace(slowest, 2, groups, device=device, dtype=dtype)
    lags = torch.arange(taps, device=device, dtype=dtype) / max(taps - 1, 1)
    return torch.exp(-rates[:, None] * lags)


def _numbers(config: HyenaGLTConfig) -> int:
    """Numbers of a channel's state."""
    return config.li_modes * (2 if config.li_poles == "complex" else 1)


def _initial_phase(full: Tensor, generator: torch.Generator) -> None:
    """pi n / (2 N): periods of 4 positions and more (after S4D-Lin, arXiv:2206.11893)."""
    full.copy_(torch.arange(full.shape[1]).mul(math.pi / (2 * full.shape[1])).expand_as(full))


def _initial_log_rate(full: Tensor, generator: torch.Generator) -> None:
    """p = -1 and gamma = log U(0.01, 0.1): time constants of 27 to 270 positions."""
    full.uniform_(0.01, 0.1, generator=generator).log_().sub_(1.0)
