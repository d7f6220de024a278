"""Single operators to build by hand: batch first, causal, equal to the model's layers to the bit.

Initial weights come from torch's own generator, so `torch.manual_seed` decides them. B batch,
L length, d channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.genomic import CONSERVATION
from megatron_hyena.layers.parameter import drawn_seed, initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.hyena_glt import mixer_class
from megatron_hyena.ops import fft_conv as transform


class BatchFirstMixer(nn.Module):
    """A mixer of `megatron_hyena.layers`, `mixer`, behind tensors [B, L, d].

    Args:
        sign: which one, a sign of the pattern.
        config: its sizes; the pattern in it is not used but for the scale of the output's weights.
    """

    def __init__(self, sign: str, config: HyenaGLTConfig) -> None:
        super().__init__()
        self.config, self.sign = config, sign
        self.mixer = mixer_class(sign)(config, DenseProvider())
        initialise(self.mixer, drawn_seed(), rank=0, size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, d] -> [B, L, d], in the dtype of x.

        Raises:
            UserError: another number of channels, or a sequence longer than the filters.
        """
        return self.mixed(x, {})

    def mixed(self, x: Tensor, tracks: Mapping[str, Tensor]) -> Tensor:
        """The same, with numbers [B, L] beside the positions."""
        check_states(x, self.config.hidden_size, longest_of(self.config, self.sign))
        span = Span(0, x.shape[1], tracks=tracks)
        mixed: Tensor = self.mixer(x.transpose(0, 1), span)
        return mixed.transpose(0, 1)

    @property
    def causal(self) -> bool:
        """No position sees a later one; it cannot be switched off."""
        return True


class HyenaOperator(BatchFirstMixer):
    """Hyena of order N with implicit filters and a sigmoid output gate (sign `H`).

    Args:
        d_model: channels d.
        l_max: longest sequence; filters are functions of position / l_max.
        order: N, gates and filters.
        filter_order: width of the network that makes the filters.
    """

    def __init__(self, d_model: int, l_max: int, order: int = 2, filter_order: int = 64) -> None:
        super().__init__("H", operator_config(d_model, l_max, order, filter_order))

    @property
    def filter_size(self) -> int:
        """Taps of the longest filter."""
        return self.config.hyena_taps

    @staticmethod
    def fft_conv(u: Tensor, filter_coeffs: Tensor) -> Tensor:
        """Linear, causal convolution of u [B, L, d] with taps [d, K]: [B, L, d] in fp32 or fp64."""
        z = transform.fft_conv(u.permute(2, 0, 1), filter_coeffs)
        return z.permute(1, 2, 0)


class HyenaBlock(HyenaOperator):
    """The Hyena operator of a configuration: order, filters and gate are its `hyena_*` fields."""

    def __init__(self, config: HyenaGLTConfig) -> None:
        BatchFirstMixer.__init__(self, "H", config)


class StripedHyenaOperator(BatchFirstMixer):
    """Layer `layer_idx` of a striped stack: Hyena if even, causal attention with RoPE if odd.

    Only the one needed is built. The whole stack is `HyenaGLTConfig(pattern="[HA]6")`.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int,
        order: int = 2,
        num_heads: int = 8,
        layer_idx: int = 0,
        filter_order: int = 64,
    ) -> None:
        if layer_idx % 2:
            config = HyenaGLTConfig(
                pattern="A", hidden_size=d_model, num_heads=num_heads, max_sequence_length=l_max
            )
        else:
            config = operator_config(d_model, l_max, order, filter_order)
        super().__init__(config.signs[0], config)
        self.layer_idx = layer_idx


class GenomicHyenaOperator(HyenaOperator):
    """The same with motifs, structure and a conservation gate (sign `G`; see `layers.genomic`).

    Args:
        motif_length: taps of the motif branch.
        motifs: what that starts from: names or IUPAC letters; None for the configuration's.
    """

    def __init__(
        self,
        d_model: int,
        l_max: int,
        order: int = 2,
        motif_length: int = HyenaGLTConfig.motif_length,
        motifs: Sequence[str] | None = None,
        filter_order: int = 64,
    ) -> None:
        plain = operator_config(d_model, l_max, order, filter_order)
        letters = plain.motifs if motifs is None else tuple(motifs)
        config = replace(plain, pattern="G", motif_length=motif_length, motifs=letters)
        BatchFirstMixer.__init__(self, "G", config)

    def forward(self, x: Tensor, conservation_scores: Tensor | None = None) -> Tensor:
        """x [B, L, d] and, where known, scores [B, L] (NaN: unknown) -> [B, L, d].

        Raises:
            UserError: as for `HyenaOperator`; not one score for each position.
        """
        scores = conservation_scores
        return self.mixed(x, {} if scores is None else {CONSERVATION: scores})


def operator_config(d_model: int, l_max: int, order: int, filter_order: int) -> HyenaGLTConfig:
    """The configuration of one gated Hyena operator."""
    return HyenaGLTConfig(
        pattern="H",
        hidden_size=d_model,
        hyena_order=order,
        hyena_filter_order=filter_order,
        hyena_output_gate=True,
        max_sequence_length=l_max,
    )


def longest_of(config: HyenaGLTConfig, sign: str) -> int | None:
    """Longest sequence of a mixer; None where its filters do not end."""
    bounded = sign in "HG" and not config.explicit_taps
    return config.max_sequence_length if bounded else None


def check_states(x: Tensor, width: int, longest: int | None) -> None:
    """Refuse what is not [B, L, width] with L up to `longest` (None for any).

    Raises:
        UserError: with both numbers.
    """
    if x.dim() != 3 or x.shape[-1] != width:
        raise UserError(f"states of shape {list(x.shape)} are not [batch, length, {width}]")
    if longest is not None and x.shape[1] > longest:
        raise UserError(
            f"a sequence of {x.shape[1]} positions exceeds l_max = {longest} "
            "(max_sequence_length), which the filters are made for; raise the latter"
        )
    if not torch.is_floating_point(x):
        raise UserError(f"states are floating-point numbers, not {x.dtype}; embed the ids first")


StableHyenaOperator = HyenaOperator
"""Transforms run in fp32 or wider, on a length that cannot wrap around: always stable."""
StrippedHyenaOperator = StripedHyenaOperator
"""As the guide spells it."""
