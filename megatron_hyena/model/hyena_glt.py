"""Hyena-GLT: byte embedding, pre-norm blocks from the pattern, final norm, head.

    u = x + Mixer(RMSNorm(x));  y = u + MLP(RMSNorm(u))

`HyenaGLT(config)` is the dense model in plain torch; with a parallel provider the same class is
one rank's share of it: of the channels, and of each sequence. All ranks of a sequence are given the
whole of it and compute their own stretch. A length that the layout does not divide is padded at the
end, which changes nothing before it. L length, l stretch of one rank (L on one rank), B batch, h
hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS, chooses
from megatron_hyena.layers.embedding import Embedding, Head, vocabulary_weight
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.mlp import GatedMLP
from megatron_hyena.layers.norm import RMSNorm
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider, Provider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.folder import read_config, read_weights, write_folder
from megatron_hyena.ops.documents import Documents

LOSS_SLICE = 16384
"""Positions (over all rows) whose logits are held at once under recomputation."""
PADDING = 0
"""Byte behind the end of a sequence that the layout does not divide; nothing reads it."""


@dataclass(frozen=True)
class HyenaGLTOutput:
    """Result of a forward pass.

    Attributes:
        logits: [B, L, V]; of this rank's stretch where ranks share a sequence.
        last_hidden_state: after the final norm, [B, L, h] (of this rank's stretch, and slice under
            sequence parallelism).
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
        self.mixer = mixer_class(sign)(config, provider.of_layer(sign))
        if config.ffn:
            self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
            self.mlp = GatedMLP(config, provider.of_layer("MLP"))
        self.has_mlp = bool(config.ffn)

    def forward(self, x_LBH: Tensor, span: Span) -> Tensor:
        """[L, B, h] -> [L, B, h]."""
        x_LBH = x_LBH + self.mixer(self.mixer_norm(x_LBH), span)
        if self.has_mlp:
            x_LBH = x_LBH + self.mlp(self.mlp_norm(x_LBH))
        return x_LBH


class HyenaGLT(nn.Module):
    """The language model.

    Args:
        config: architecture.
        provider: the layout; dense by default.
        seed: of the initial weights, which are the same in every layout.
        recompute: of which blocks to keep only the inputs and compute the rest again in the
            backward pass: `none`, `block` (all) or signs such as `SM`; if of any, the logits are
            computed again too, slice by slice.
    """

    def __init__(
        self,
        config: HyenaGLTConfig,
        provider: Provider | None = None,
        seed: int = 0,
        recompute: str = "none",
    ) -> None:
        super().__init__()
        self.config = config
        self.recomputed = tuple(chooses(recompute, sign) for sign in config.signs)
        self.provider: Provider = provider or DenseProvider()
        ends = self.provider.of_layer("embedding, head")
        self.embedding = Embedding(config, ends)
        self.blocks = nn.ModuleList(Block(s, config, self.provider) for s in config.signs)
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        tied = config.tie_embeddings
        self.head = Head(self.embedding.weight if tied else vocabulary_weight(config, ends))
        self.ends = ends
        if self.embedding.weight.device.type != "meta":
            initialise(self, seed, self.provider.rank, self.provider.size)

    def stretch(self, whole_BL: Tensor, padding: float = PADDING) -> Tensor:
        """This rank's positions [B, l] of a tensor of whole sequences [B, L], padded if need be."""
        missing = -whole_BL.shape[1] % self.provider.sequence_multiple
        context = self.provider.context
        padded = F.pad(whole_BL, (0, missing), value=padding) if missing else whole_BL
        return padded.chunk(context.size, dim=1)[context.rank]

    def hidden(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """ids [B, L] -> final hidden states [l, B, h] (a slice of l under sequence parallelism)."""
        own = self.stretch(input_ids)
        span = self._span(own.shape[1], document_ids)
        x = self.embedding(own.t())
        for block, recomputed in zip(self.blocks, self.recomputed, strict=True):
            if recomputed and self.training:
                x = checkpoint(block, x, span, use_reentrant=False)
            else:
                x = block(x, span)
        normed: Tensor = self.final_norm(x)
        return normed

    def _span(self, length: int, document_ids: Tensor | None) -> Span:
        whole, context = None, self.provider.context
        if document_ids is not None:
            # Padding is a document of its own.
            missing = length * context.size - document_ids.shape[1]
            whole = Documents.from_ids(F.pad(document_ids.long(), (0, missing), value=-1))
        return Span.of_rank(context.rank, length, whole)

    def token_losses(
        self, input_ids: Tensor, targets: Tensor, document_ids: Tensor | None = None
    ) -> Tensor:
        """-log p(target) in nats of this rank's stretch, [B, l]; see `stretch`.

        Args:
            input_ids, targets: whole sequences [B, L], the targets already shifted.
            document_ids: number of each input position's document [B, L]; no document sees
                another. None for one document per row.
        """
        x = self.ends.enter(self.hidden(input_ids, document_ids))
        targets = self.stretch(targets).t()
        if not (any(self.recomputed) and self.training):
            return self._nll(x, targets).t()
        step = max(1, LOSS_SLICE // x.shape[1])
        slices = [
            checkpoint(self._nll, *part, use_reentrant=False)
            for part in zip(x.split(step), targets.split(step), strict=True)
        ]
        return torch.cat(slices).t()

    def _nll(self, x_LBH: Tensor, targets_LB: Tensor) -> Tensor:
        return self.ends.cross_entropy(self.head(x_LBH), targets_LB.contiguous())

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> HyenaGLTOutput:
        """Run the model.

        Args:
            input_ids: byte values [B, L], int64.
            labels: usually `input_ids`; the model shifts them. -100 is not scored, nor is the
                first byte of a document.
            document_ids: see `token_losses`.
        """
        hidden = self.hidden(input_ids, document_ids)
        local_logits = self.head(self.ends.enter(hidden))
        loss = None
        if labels is not None:
            shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
            if document_ids is not None:
                foreign = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (0, 1))
                shifted = shifted.masked_fill(foreign, -100)
            targets = self.stretch(shifted, -100).t()
            scored = targets != -100
            nll = self.ends.cross_entropy(
                local_logits, targets.masked_fill(~scored, 0).contiguous()
            )
            context = self.provider.context
            count = context.sum(scored.sum().to(nll.dtype))
            loss = context.sum((nll * scored).sum()) / count.clamp(min=1)
        logits = self.ends.gather_vocabulary(local_logits)
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
