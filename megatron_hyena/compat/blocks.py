"""Embedding, residual layers, feed-forward, rotary positions: what surrounds an operator."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from megatron_hyena.compat.operators import check_states, longest_of
from megatron_hyena.config.model import SEQUENCE_TYPES, HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.embedding import Embedding, TypeEmbedding
from megatron_hyena.layers.mlp import GatedMLP
from megatron_hyena.layers.parameter import drawn_seed, initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.hyena_glt import Block
from megatron_hyena.ops.attention import rotary_angles, rotate
from megatron_hyena.ops.fir import compute_dtype


class HyenaGLTEmbedding(nn.Module):
    """A vector of the byte and one of what kind of sequence it is in; no position is added.

    Position comes from the convolutions and from RoPE inside attention. What has no type is of the
    configuration's `type_embedding`, DNA if that is `none`; never is the vector left out.
    """

    def __init__(self, config: HyenaGLTConfig) -> None:
        super().__init__()
        if config.type_embedding == "none":
            config = replace(config, type_embedding=SEQUENCE_TYPES[0])
        self.token_embedding = Embedding(config, DenseProvider())
        self.type_embedding = TypeEmbedding(config)
        initialise(self, drawn_seed(), rank=0, size=1)

    def forward(self, input_ids: Tensor, sequence_type: Tensor | None = None) -> Tensor:
        """Ids [B, L]; types [B] or [B, L], 0 DNA, 1 RNA, 2 protein, 3 mixed -> [B, L, d].

        Raises:
            UserError: an id or a type that does not exist, types of another shape.
        """
        types = sequence_type
        if types is not None:
            types = types[:, None].expand(-1, input_ids.shape[1]) if types.dim() == 1 else types
            check_types(types, input_ids)
            types = types.t()
        vectors: Tensor = self.type_embedding(self.token_embedding(input_ids.t()), types)
        return vectors.transpose(0, 1)


def check_types(types: Tensor, ids: Tensor) -> None:
    """Refuse types of another shape than `ids`, and, on a CPU, types that do not exist."""
    if types.shape != ids.shape:
        raise UserError(
            f"sequence_type of shape {list(types.shape)} does not fit ids of shape "
            f"{list(ids.shape)}; give one type per sequence or per byte"
        )
    if types.device.type == "cpu" and bool(((types < 0) | (types >= len(SEQUENCE_TYPES))).any()):
        known = ", ".join(f"{number} {name}" for number, name in enumerate(SEQUENCE_TYPES))
        raise UserError(
            f"sequence types are {known}; found {int(types.min())} to {int(types.max())}"
        )


class ResidualHyenaLayer(nn.Module):
    """One pre-norm residual block of the model around a Hyena operator (sign `H`).

    x + drop(hyena(norm x)), then x + drop(mlp(norm x)); without dropout it is the model's block.
    """

    def __init__(self, config: HyenaGLTConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.block = Block("H", config, DenseProvider())
        initialise(self.block, drawn_seed(), rank=0, size=1)
        self.block.mixer = Dropped(self.block.mixer, dropout)  # type: ignore[assignment]
        if self.block.has_mlp:
            self.block.mlp = Dropped(self.block.mlp, dropout)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, d] -> [B, L, d].

        Raises:
            UserError: another number of channels, or a sequence longer than the filters.
        """
        check_states(x, self.config.hidden_size, longest_of(self.config, "H"))
        y: Tensor = self.block(x.transpose(0, 1), Span.alone(x.shape[1]))
        return y.transpose(0, 1)


class Dropped(nn.Module):
    """`layer`, and dropout on what it gives."""

    def __init__(self, layer: nn.Module, dropout: float) -> None:
        super().__init__()
        self.layer, self.dropout = layer, nn.Dropout(dropout)

    def forward(self, x: Tensor, *more: object) -> Tensor:
        """As `layer`."""
        dropped: Tensor = self.dropout(self.layer(x, *more))
        return dropped


class FeedForward(nn.Module):
    """The gated MLP of the model's blocks; `d_ff` inner channels, by default 8/3 of d."""

    def __init__(self, d_model: int, d_ff: int = 0) -> None:
        super().__init__()
        if d_ff < 0:
            raise UserError(f"d_ff={d_ff} must be 0 (8/3 of d_model) or more")
        config = HyenaGLTConfig(pattern="H", hidden_size=d_model, ffn_hidden_size=d_ff)
        self.mlp = GatedMLP(config, DenseProvider())
        initialise(self.mlp, drawn_seed(), rank=0, size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        y: Tensor = self.mlp(x)
        return y


class RotaryPositionalEmbedding(nn.Module):
    """Turns queries and keys by their position (RoPE, arXiv:2104.09864); no parameters.

    It acts on heads inside attention. It is never added to a token's vector: x + R x has a norm
    that depends on the position.
    """

    def __init__(self, head_dim: int, base: float = HyenaGLTConfig.rope_base) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise UserError(f"head_dim={head_dim} must be even: RoPE turns pairs of channels")
        self.head_dim, self.base = head_dim, base

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x [..., L, head_dim] at positions from `start` -> the same shape and dtype."""
        if x.shape[-1] != self.head_dim:
            raise UserError(
                f"heads of {x.shape[-1]} channels were given to RoPE of {self.head_dim}"
            )
        place = torch.arange(start, start + x.shape[-2], device=x.device)
        return rotate(x, *rotary_angles(place, self.head_dim, self.base, compute_dtype(x)))


HyenaDynamicLayer = ResidualHyenaLayer
"""A shared layer of `MultiTaskHyenaGLT`; merging is in the backbone's stages."""
