"""Hyena-GLT: byte embedding, pre-norm blocks from the pattern, final norm, head.

    u = x + Mixer(RMSNorm(x));  y = u + MLP(RMSNorm(u))

`HyenaGLT(config)` is the dense model in plain torch; with a parallel provider the same class is
one rank's share of it. L length, B batch, h hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.layers.embedding import Embedding, Head, vocabulary_weight
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.mlp import GatedMLP
from megatron_hyena.layers.norm import RMSNorm
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider, Provider
from megatron_hyena.model.folder import read_config, read_weights, write_folder


@dataclass(frozen=True)
class HyenaGLTOutput:
    """Result of a forward pass.

    Attributes:
        logits: [B, L, V].
        last_hidden_state: after the final norm, [B, L, h].
        loss: mean nats per predicted byte, when labels were given.
    """

    logits: Tensor
    last_hidden_state: Tensor
    loss: Tensor | None = None


def mixer_class(sign: str) -> type[Mixer]:
    """The class behind a sign of the pattern."""
    module, _, name = SIGNS[sign].layer.partition(":")
    found: type[Mixer] = getattr(importlib.import_module(module), name)
    return found


class Block(nn.Module):
    """One residual block: mixer, then MLP (left out when `ffn` is 0)."""

    def __init__(self, sign: str, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mixer = mixer_class(sign)(config, provider)
        if config.ffn:
            self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
            self.mlp = GatedMLP(config, provider)
        self.has_mlp = bool(config.ffn)

    def forward(self, x_LBH: Tensor) -> Tensor:
        """[L, B, h] -> [L, B, h]."""
        x_LBH = x_LBH + self.mixer(self.mixer_norm(x_LBH))
        if self.has_mlp:
            x_LBH = x_LBH + self.mlp(self.mlp_norm(x_LBH))
        return x_LBH


class HyenaGLT(nn.Module):
    """The language model.

    Args:
        config: architecture.
        provider: the layout; dense by default.
        seed: of the initial weights, which are the same in every layout.
        recompute: keep only each block's input and compute the rest again in backward.
    """

    def __init__(
        self,
        config: HyenaGLTConfig,
        provider: Provider | None = None,
        seed: int = 0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.recompute = config, recompute
        self.provider: Provider = provider or DenseProvider()
        self.embedding = Embedding(config, self.provider)
        self.blocks = nn.ModuleList(Block(s, config, self.provider) for s in config.signs)
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        tied = config.tie_embeddings
        weight = self.embedding.weight if tied else vocabulary_weight(config, self.provider)
        self.head = Head(self.provider, weight)
        if self.embedding.weight.device.type != "meta":
            initialise(self, seed, self.provider.rank, self.provider.size)

    def hidden(self, ids_LB: Tensor) -> Tensor:
        """ids [L, B] -> final hidden states [L, B, h] (this rank's slice of L)."""
        x = self.embedding(ids_LB)
        for block in self.blocks:
            if self.recompute and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        normed: Tensor = self.final_norm(x)
        return normed

    def token_losses(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """-log p(target) in nats, [B, L], for already shifted targets [B, L]."""
        logits = self.head(self.hidden(input_ids.t()))
        return self.provider.cross_entropy(logits, targets.t().contiguous()).t()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> HyenaGLTOutput:
        """Run the model.

        Args:
            input_ids: byte values [B, L], int64.
            labels: usually `input_ids`; the model shifts them. -100 is not scored.
        """
        hidden = self.hidden(input_ids.t())
        local_logits = self.head(hidden)
        loss = None
        if labels is not None:
            targets = labels[:, 1:].t()
            scored = targets != -100
            nll = self.provider.cross_entropy(
                local_logits[:-1], targets.masked_fill(~scored, 0).contiguous()
            )
            loss = (nll * scored).sum() / scored.sum().clamp(min=1)
        logits = self.provider.gather_vocabulary(local_logits)
        return HyenaGLTOutput(logits.transpose(0, 1), hidden.transpose(0, 1), loss)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` of the dense model; see `model.folder`."""
        write_folder(Path(folder), self.config, dict(self.named_parameters()))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> HyenaGLT:
        """Read what `save_pretrained` wrote.

        Raises:
            UserError: a file is missing, damaged, or holds other tensors than the model needs.
        """
        model = cls(read_config(Path(folder)))
        read_weights(Path(folder), dict(model.named_parameters()))
        return model
