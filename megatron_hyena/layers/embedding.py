"""Byte embedding and output head, cut by token id."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.model import SEQUENCE_TYPES, HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import Cut, constant, cut_parameter, normal
from megatron_hyena.layers.provider import Provider


def vocabulary_weight(config: HyenaGLTConfig, provider: Provider) -> nn.Parameter:
    """[V / size, h]."""
    cut = Cut((config.vocab_size, config.hidden_size), normal(config.init_std), dim=0)
    return cut_parameter(cut, provider.size)


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Refuse token ids outside the vocabulary, on a CPU; elsewhere it would cost a round trip.

    Raises:
        UserError: an id, and the size of the vocabulary.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= vocab_size:
        raise UserError(
            f"token id {least if least < 0 else most} is outside model.vocab_size={vocab_size}; "
            "ids are bytes (vocab_size=256), or of GenomicTokenizer(compact=True) for 4 letters"
        )


class Embedding(nn.Module):
    """Vocabulary-parallel embedding: a rank adds the vectors of the ids it holds."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        self.provider = provider
        self.weight = vocabulary_weight(config, provider)

    def forward(self, ids_LB: Tensor) -> Tensor:
        """ids [L, B] -> [L, B, h] (this rank's slice of L under sequence parallelism)."""
        held = self.weight.shape[0]
        check_ids(ids_LB, held * self.provider.size)
        local = ids_LB - self.provider.rank * held
        elsewhere = (local < 0) | (local >= held)
        vectors = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self.provider.leave(vectors.masked_fill(elsewhere[..., None], 0.0))


class TypeEmbedding(nn.Module):
    """One vector per type of sequence, added to the embedded bytes of a slice of the stream.

    Its start is 0: a new type is at first read as any sequence.
    """

    def __init__(self, config: HyenaGLTConfig) -> None:
        super().__init__()
        self.default = SEQUENCE_TYPES.index(config.type_embedding)
        shape = (len(SEQUENCE_TYPES), config.hidden_size)
        cut = Cut(shape, constant(0.0), sequence_partial=True, role="vector")
        self.weight = cut_parameter(cut, 1)

    def forward(self, x_LBH: Tensor, types_LB: Tensor | None) -> Tensor:
        """x [L, B, h] with the vectors of `types` int64 [L, B]; None for the default everywhere."""
        if types_LB is None:
            return x_LBH + self.weight[self.default].to(x_LBH.dtype)
        return x_LBH + F.embedding(types_LB, self.weight).to(x_LBH.dtype)


class Head(nn.Module):
    """Logits over this rank's slice of the vocabulary."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x_LBH: Tensor) -> Tensor:
        """x [L, B, h], entered (`Provider.enter`) -> logits [L, B, V / size]."""
        return F.linear(x_LBH, self.weight)
