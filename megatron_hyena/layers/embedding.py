"""Byte embedding and output head, cut by token id."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import Cut, cut_parameter, normal
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


class Head(nn.Module):
    """Logits over this rank's slice of the vocabulary."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x_LBH: Tensor) -> Tensor:
        """x [L, B, h], entered (`Provider.enter`) -> logits [L, B, V / size]."""
        return F.linear(x_LBH, self.weight)
