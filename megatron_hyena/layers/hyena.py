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
from megatron_hyena.layers.linear import column_weight, output_bias, row_weight
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.parameter import Cut, Init, constant, cut_parameter, normal, uniform
from megatron_hyena.layers.provider import Provider
from megatron_hyena.ops.fir import causal_fir, compute_dtype
from megatron_hyena.ops.linear import from_channel_first, to_channel_first
from megatron_hyena.ops.modal import modal_conv

FEATURIZER_TAPS = 3


def filter_parameter(shape: tuple[int, ...], init: Init, provider: Provider) -> nn.Parameter:
    """A filter's parameter, cut over its first dimension (channels or groups)."""
    return cut_parameter(Cut(shape, init, dim=0, role="filter"), provider.size)


class HyenaMixer(Mixer):
    """Projections, featurizer, gates and output of a Hyena layer; subclasses add `conv`."""

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

    def conv(self, z_DBL: Tensor) -> Tensor:
        """The long or short causal convolution, [D, B, L] -> [D, B, L]."""
        raise NotImplementedError

    def mix(self, streams: tuple[Tensor, ...]) -> Tensor:
        """Combine the featurized streams, each [D, B, L]."""
        x1, x2, v = streams
        return x1 * self.conv(x2 * v)

    def modulate(self, y_DBL: Tensor, x_LBH: Tensor) -> Tensor:
        """A last gate on the mixed channels y [D, B, L]; none by default."""
        return y_DBL

    def forward(self, x_LBH: Tensor) -> Tensor:
        """x [L, B, h] -> [L, B, h]; gates and convolutions in fp32 (fp64 for fp64)."""
        x = self.provider.enter(x_LBH)
        projected = to_channel_first(x, self.projection)
        # Stored as cross-correlation taps (the last is the current position), as in savanna.
        features = causal_fir(projected, self.featurizer.flip(1))
        y = self.mix(features.unflatten(0, (-1, self.streams)).unbind(1))
        y = self.modulate(y, x)
        out = self.provider.leave(from_channel_first(y, self.output))
        return out.to(x_LBH.dtype) + self.bias.to(x_LBH.dtype)

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

    def conv(self, z_DBL: Tensor) -> Tensor:
        """z_t = sum_j w[g, j] z[t - (K - 1) + j]."""
        return causal_fir(z_DBL, self.taps.flip(1))

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

    def conv(self, z_DBL: Tensor) -> Tensor:
        """sum_k f[g, k] z[t - k] + skip z[t]."""
        dtype = compute_dtype(z_DBL)
        z = z_DBL.to(dtype)
        filtered = causal_fir(z, self.taps.to(dtype) * self.decay(dtype))
        return filtered + self.skip.to(dtype)[:, None, None] * z

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

    def conv(self, z_DBL: Tensor) -> Tensor:
        """See `ops.modal`."""
        return modal_conv(z_DBL, self.log_rate, self.residue, self.skip)

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
