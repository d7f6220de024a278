"""`G`: order-N Hyena with three genomic parts (the seed architecture's GenomicHyenaOperator).

    y = W_out (c * (H(x) + a_m * motif(v) + a_s * structure(v))) + b

H(x) is the recurrence of `layers.hyena_order` before its output product, v its last stream: the
projection and featurizer of x, [D, B, L]. The scales a_m, a_s begin at zero, one for each channel,
so a new `G` computes what `H` computes. Everything is causal and stays within its document.

    motif      a short depthwise filter that starts from motifs
    structure  exponential averages of v over a few learned distances
    c          1 + tanh(w s + u) of the position's conservation s; exactly 1 where it is unknown

The gate is on the sum and not on one branch, since what is conserved matters to all three, and it
is around 1, so that a score of 0 does not silence the layer. A sequence that is being written has
no score yet; a model that shall write must be trained on unknown ones too. A score is only as
causal as its maker: one that was smoothed over its neighbours tells of bases to come.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.exchange import fir_across, state_across
from megatron_hyena.layers.hyena import filter_parameter
from megatron_hyena.layers.hyena_order import HyenaOperator
from megatron_hyena.layers.mixer import Message
from megatron_hyena.layers.motifs import motif_filters
from megatron_hyena.layers.parameter import Cut, constant, cut_parameter, normal
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.fir import causal_fir
from megatron_hyena.ops.modal import modal_conv

NEAREST, FARTHEST = 8.0, 4096.0
"""Shortest and longest distance, in positions, over which a new `StructureEncoder` averages."""
CONSERVATION = "conservation"
"""The track that the gate reads, [B, L] of floats, NaN where unknown."""


class MotifConvolution(nn.Module):
    """scale[c] * sum_k taps[c, k] v[c, t - k] over `model.motif_length` taps; see `layers.motifs`.

    The scale is multiplied into the taps, so the branch stores no output of its own.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        self.provider = provider
        shape = (config.hidden_size, config.motif_length)
        self.taps = filter_parameter(shape, motif_filters(config.motifs), provider)
        self.scale = filter_parameter((config.hidden_size,), constant(0.0), provider)

    def forward(self, v_DBl: Tensor, span: Span) -> Tensor:
        """[D, B, l] -> [D, B, l]; fetches the positions before the span."""
        taps = self.scale[:, None] * self.taps
        if self.provider.exchange == "local":
            return causal_fir(v_DBl, taps, span.own)
        return fir_across(self.provider.context, v_DBl, taps, span)[0]


class StructureEncoder(nn.Module):
    """scale[c] * sum_n weight[c, n] mean_n(v[c])[t]: composition around a position, up to it.

        mean_n(v)[t] = (1 - a_n) sum_k a_n^k v[t - k],  a_n = exp(-exp(log_rate[c, n]))

    `model.structure_scales` distances per channel; weights of both signs compare near with far.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        self.provider = provider
        shape = (config.hidden_size, config.structure_scales)
        self.log_rate = filter_parameter(shape, _spread_distances, provider)
        self.weight = filter_parameter(shape, normal(1 / math.sqrt(shape[1])), provider)
        self.scale = filter_parameter((config.hidden_size,), constant(0.0), provider)

    def forward(self, v_DBl: Tensor, span: Span) -> Tensor:
        """[D, B, l] -> [D, B, l]; one number per mean crosses from span to span."""
        rest = -torch.expm1(-torch.exp(self.log_rate))  # 1 - a without cancellation
        residue = self.scale[:, None] * self.weight * rest
        across = None
        if self.provider.exchange != "local":
            across = state_across(self.provider.context, span)
        none = torch.zeros_like(self.scale)
        modes = (self.log_rate, residue, none)
        return modal_conv(v_DBl, *modes, documents=span.own, hand_over=across)


class ConservationFilter(nn.Module):
    """y * (1 + tanh(weight[c] s[t] + bias[c])); s NaN, or no s at all, leaves y as it is.

    Both parameters begin at zero and the factor at 1; without scores their gradient is 0.
    """

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        cut = Cut((config.hidden_size,), constant(0.0), dim=0, role="vector")
        self.weight = cut_parameter(cut, provider.size)
        self.bias = cut_parameter(cut, provider.size)

    def forward(self, y_DBl: Tensor, score_Bl: Tensor | None) -> Tensor:
        """[D, B, l], scores [B, l] or None -> [D, B, l].

        Raises:
            UserError: there is not one score for each position.
        """
        if score_Bl is not None and score_Bl.shape != y_DBl.shape[1:]:
            raise UserError(
                f"the track {CONSERVATION!r} has shape {list(score_Bl.shape)}, the positions "
                f"{list(y_DBl.shape[1:])}; give one score for each byte, NaN where it is unknown"
            )
        score = y_DBl.new_full((1, 1), math.nan) if score_Bl is None else score_Bl.to(y_DBl.dtype)
        unknown = score.isnan()
        known = score.masked_fill(unknown, 0.0)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        factor = 1 + torch.tanh(weight * known + bias)
        return y_DBl * factor.masked_fill(unknown, 1.0)


class GenomicHyenaOperator(HyenaOperator):
    """Order-N Hyena plus motif and structure branches, under the conservation gate."""

    tracks = (CONSERVATION,)

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.motif = MotifConvolution(config, provider)
        self.structure = StructureEncoder(config, provider)
        self.conservation = ConservationFilter(config, provider)

    def mix(self, streams: tuple[Tensor, ...], before: tuple[Tensor, ...], span: Span) -> Tensor:
        """See `HyenaMixer.mix`."""
        v = streams[-1].contiguous()
        branches = self.motif(v, span) + self.structure(v, span)
        y = super().mix(streams, before, span) + branches
        return self.conservation(y, span.tracks.get(CONSERVATION))

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """See `Mixer.messages`: also what the two branches fetch."""
        width = config.hidden_size
        motif = Message("halo", width, config.motif_length - 1)
        structure = Message("gather", width * config.structure_scales)
        return [*HyenaOperator.messages(config, exchange), motif, structure]

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """See `HyenaOperator.mixing_flops`: taps, means as recurrences, two sums and the gate."""
        extra = 2 * config.motif_length + 4 * config.structure_scales + 3
        return HyenaOperator.mixing_flops(config, length) + extra * config.hidden_size

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """See `HyenaOperator.stored_rows`; also v by itself, the gate's input, tanh and factor."""
        fixed, products = HyenaOperator.stored_rows(config)
        return fixed + 4, products


def _spread_distances(full: Tensor, generator: torch.Generator) -> None:
    """log(1 / distance), the distances in even ratios, the same for every channel."""
    ends = (-math.log(NEAREST), -math.log(FARTHEST))
    full.copy_(torch.linspace(*ends, full.shape[1]).expand_as(full))
