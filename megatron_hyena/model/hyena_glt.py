"""Hyena-GLT: byte embedding, pre-norm blocks from the pattern, final norm, head.

    u = x + Mixer(RMSNorm(x));  y = u + MLP(RMSNorm(u))

`HyenaGLT(config)` is the dense model in plain torch; with a parallel provider the same class is
one rank's share of it: of the channels, and of each sequence. All ranks of a sequence are given the
whole of it and compute their own stretch. A length that the layout does not divide is padded at the
end, which nothing else sees. Blocks between `(` and `)` of the pattern see merged
positions: `layers.merging`. L length, l stretch of one rank (L on one rank), B batch, h hidden
size, V vocabulary.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_hyena.config.alphabet import TRACKS, filler_id, pad_id
from megatron_hyena.config.merging import merging_multiple, stage_shapes
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS, chooses, parse_layout
from megatron_hyena.config.saved import read_config
from megatron_hyena.errors import UserError
from megatron_hyena.layers.bidirectional import both_ways
from megatron_hyena.layers.embedding import Embedding, Head, TypeEmbedding, vocabulary_weight
from megatron_hyena.layers.merging.axis import Axis, neutral
from megatron_hyena.layers.merging.keeping import Rates, counting, named_figures
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.layers.merging.stage import Merge, MergedStage
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.mlp import GatedMLP
from megatron_hyena.layers.norm import block_norm
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider, Provider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.byte_axis import ByteAxis
from megatron_hyena.model.document_numbers import apart_from_padding, next_labels
from megatron_hyena.model.folder import read_weights, write_folder
from megatron_hyena.model.inputs import check_beside, check_inputs, check_length
from megatron_hyena.model.ratio_weights import ratio_weights
from megatron_hyena.model.walk import Walk
from megatron_hyena.ops.documents import Documents

LOSS_SLICE = 16384
"""Positions (over all rows) whose logits are held at once under recomputation."""
Tracks = Mapping[str, Tensor]
"""Numbers beside the bytes, by name: [B, L] each."""


@dataclass(frozen=True)
class HyenaGLTOutput:
    """Result of a forward pass.

    Attributes:
        logits: [B, L, V]; of this rank's stretch where ranks share a sequence.
        last_hidden_state: after the final norm, [B, L, h] (of this rank's stretch, and slice under
            sequence parallelism).
        loss: mean nats per predicted byte, when labels were given.
        ratio_loss: the mean of what pulls merging to its rate, to be added to the loss in training;
            0 without a learned router, and until `after_step` has found the rate off. When labels
            were given.
        merges: what each merged stage decided, by number.
    """

    logits: Tensor
    last_hidden_state: Tensor
    loss: Tensor | None = None
    ratio_loss: Tensor | None = None
    merges: tuple[Merge, ...] = ()


def mixer_class(sign: str, causal: bool = True) -> type[Mixer]:
    """The class behind a sign of the pattern; of a model that is not causal, what stands for it."""
    module, _, name = SIGNS[sign].layer.partition(":")
    found: type[Mixer] = getattr(importlib.import_module(module), name)
    return found if causal else both_ways(found)


class Block(nn.Module):
    """One residual block: mixer, then MLP (left out when `ffn` is 0)."""

    def __init__(
        self, sign: str, config: HyenaGLTConfig, provider: Provider, number: int = 0
    ) -> None:
        super().__init__()
        self.mixer_norm = block_norm(config)
        self.mixer = mixer_class(sign, config.causal)(config, provider.of_layer(sign))
        if config.ffn:
            self.mlp_norm = block_norm(config)
            self.mlp = GatedMLP(config, provider.of_layer("MLP"), number)
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
        self.config, self.longest, self.filler = config, config.longest_sequence, filler_id(config)
        self.recomputed = tuple(chooses(recompute, sign) for sign in config.signs)
        self.provider: Provider = provider or DenseProvider()
        ends = self.provider.of_layer("embedding, head")
        self.embedding = Embedding(config, ends)
        typed = config.type_embedding != "none"
        self.types = TypeEmbedding(config) if typed else None
        self.blocks = nn.ModuleList(
            Block(sign, config, self.provider, number) for number, sign in enumerate(config.signs)
        )
        self.layout = parse_layout(config.pattern)
        shapes = stage_shapes(config)
        self.stages = nn.ModuleList(
            MergedStage(shapes[stage.number], stage.depth, config, self.provider)
            for stage in self.layout.stages
        )
        self.byte_axis = ByteAxis(config)
        self.merging_multiple = merging_multiple(config)
        self.final_norm = block_norm(config)
        tied = config.tie_embeddings
        self.head = Head(self.embedding.weight if tied else vocabulary_weight(config, ends))
        self.ends = ends
        initialise(self, seed, self.provider.rank, self.provider.size)

    def stretch(self, whole_BL: Tensor, padding: float = 0) -> Tensor:
        """This rank's positions [B, l] of a tensor of whole sequences [B, L], padded if need be."""
        context = self.provider.context
        return self._padded(whole_BL, padding).chunk(context.size, dim=1)[context.rank]

    def _padded(self, whole_BL: Tensor, padding: float) -> Tensor:
        missing = -whole_BL.shape[1] % (self.provider.sequence_multiple * self.merging_multiple)
        return F.pad(whole_BL, (0, missing), value=padding) if missing else whole_BL

    def hidden(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None = None,
        tracks: Tracks | None = None,
    ) -> Tensor:
        """ids [B, L] -> final hidden states [l, B, h] (a slice of l under sequence parallelism)."""
        return self._run(input_ids, document_ids, tracks)[0]

    def _run(
        self, input_ids: Tensor, document_ids: Tensor | None, tracks: Tracks | None
    ) -> tuple[Tensor, Walk]:
        check_inputs(input_ids, document_ids, tracks)
        check_length(input_ids.shape[1], self.longest)
        ids = self._padded(input_ids, self.filler)
        if not self.config.causal:
            document_ids = apart_from_padding(
                input_ids, document_ids, ids.shape[1], bool(self.stages)
            )
        documents = self._documents(document_ids, ids.shape[1])
        padded = {
            name: self._padded(track, neutral(track))
            for name, track in (tracks or {}).items()
            if name in TRACKS  # labels are not for the model to see
        }
        context = self.provider.context
        held = {
            name: track.chunk(context.size, dim=1)[context.rank] for name, track in padded.items()
        }
        length = ids.shape[1] // context.size
        span = Span.of_rank(context.rank, length, documents, held)
        stream, axis = self.provider.stream, None
        if self.stages:
            part = ids.shape[1] // stream.size
            own = slice(stream.rank * part, (stream.rank + 1) * part)
            axis = self.byte_axis(ids, documents, padded, own, given=input_ids.shape[1])
        types = padded.get("type")
        ids = ids[:, span.start : span.start + length]
        return self.walk_span(ids, None if types is None else self._slice(types), span, axis)

    def walk_span(
        self, ids_Bl: Tensor, types: Tensor | None, span: Span, axis: Axis | None
    ) -> tuple[Tensor, Walk]:
        """From the bytes of a span, and the types of the positions of the stream at hand, on.

        Returns:
            final hidden states [l, B, h] (a slice of l under sequence parallelism), and the way.
        """
        x = self.embedding(ids_Bl.t())
        if self.types is not None:
            x = self.types(x, None if types is None else types.t())
        recomputed = self.recomputed if self.training else (False,) * len(self.blocks)
        walk = Walk(self.blocks, recomputed, self.stages, self.provider)
        normed: Tensor = self.final_norm(walk.run(self.layout.items, x, span, axis))
        return normed, walk

    def _documents(self, document_ids: Tensor | None, length: int) -> Documents | None:
        """Documents of the padded sequences.

        Padding is a document of its own, but where positions are merged: there documents begin with
        windows, and padding belongs to the last.
        """
        if document_ids is None:
            return None
        missing = length - document_ids.shape[1]
        if not self.stages:
            return Documents.from_ids(F.pad(document_ids.long(), (0, missing), value=-1))
        last = document_ids[:, -1:].expand(-1, missing)
        documents = Documents.from_ids(torch.cat([document_ids, last], dim=1).long())
        return documents.check_starts(self.merging_multiple)

    def token_losses(
        self,
        input_ids: Tensor,
        targets: Tensor,
        document_ids: Tensor | None = None,
        tracks: Tracks | None = None,
    ) -> Tensor:
        """-log p(target) in nats of this rank's stretch, [B, l]; see `stretch`.

        Args:
            input_ids, targets: whole sequences [B, L], the targets already shifted.
            document_ids: number of each input position's document [B, L]; no document sees
                another. None for one document per row. With merged stages a document begins at a
                multiple of `merging_multiple`.
            tracks: numbers beside the bytes.
        """
        check_beside("targets", targets, input_ids)
        return self._token_losses(self.hidden(input_ids, document_ids, tracks), targets)

    def weighted_losses(
        self,
        input_ids: Tensor,
        targets: Tensor,
        weights: Tensor,
        document_ids: Tensor | None = None,
        tracks: Tracks | None = None,
    ) -> Tensor:
        """Sums of weighted nats over what this rank computes: [language model, ratio loss].

        The first is of its stretch, the second of its slice of the residual stream; both are meant
        to be divided by the same sum of weights [B, L].
        """
        check_beside("targets", targets, input_ids)
        check_beside("weights", weights, input_ids)
        hidden, walk = self._run(input_ids, document_ids, tracks)
        nll = self._token_losses(hidden, targets)
        penalty = self._penalty(walk, input_ids, weights)
        nats = (nll * self.stretch(weights, 0.0).to(nll.dtype)).sum()
        return torch.stack([nats, penalty.to(nats.dtype)])

    def _slice(self, padded_BL: Tensor) -> Tensor:
        """This rank's slice of the residual stream, [B, positions]."""
        stream = self.provider.stream
        return padded_BL.chunk(stream.size, dim=1)[stream.rank]

    def _penalty(self, walk: Walk, input_ids: Tensor, weights: Tensor) -> Tensor:
        config = self.config
        weights = ratio_weights(weights, input_ids, pad_id(config), config.causal)
        own = self._slice(self._padded(weights, 0.0)).t()
        penalty: Tensor = (own * walk.penalty_LB).sum()
        return penalty

    def _token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        x = self.ends.enter(hidden)
        targets = self.stretch(targets, self.filler).t()
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
        tracks: Tracks | None = None,
    ) -> HyenaGLTOutput:
        """Run the model.

        Args:
            input_ids: byte values [B, L], int64.
            labels: usually `input_ids`; the model shifts them. -100 is not scored, nor is the
                first byte of a document. Unless the model is causal, nothing is shifted: labels
                are what belongs where they stand.
            document_ids, tracks: see `token_losses`.

        Raises:
            UserError: shapes that do not fit together, a track that no model reads, or more bytes
                than the filters of `H` and `G` are made for.

        Where ranks share a sequence, what they return covers the padded length.
        """
        if labels is not None:
            check_beside("labels", labels, input_ids)
        hidden, walk = self._run(input_ids, document_ids, tracks)
        local_logits = self.head(self.ends.enter(hidden))
        loss = ratio_loss = None
        if labels is not None:
            wanted = next_labels(labels, document_ids) if self.config.causal else labels
            targets = self.stretch(wanted, -100).t()
            scored = targets != -100
            nll = self.ends.cross_entropy(
                local_logits, targets.masked_fill(~scored, 0).contiguous()
            )
            context = self.provider.context
            count = context.sum(scored.sum().to(nll.dtype))
            loss = context.sum((nll * scored).sum()) / count.clamp(min=1)
            penalty = self._penalty(walk, input_ids, (wanted != -100).to(nll.dtype))
            ratio_loss = self.provider.stream.sum(penalty) / count.clamp(min=1)
        logits = self.ends.gather_vocabulary(local_logits)
        if self.provider.context.size == 1:  # without the padding
            logits = logits[: input_ids.shape[1]]
        if self.provider.stream.size == 1:
            hidden = hidden[: input_ids.shape[1]]
        merges = tuple(walk.merges[number] for number in range(len(self.stages)))
        states = hidden.transpose(0, 1)
        return HyenaGLTOutput(logits.transpose(0, 1), states, loss, ratio_loss, merges)

    def calibrate_merging(
        self,
        input_ids: Tensor,
        document_ids: Tensor | None = None,
        tracks: Tracks | None = None,
    ) -> None:
        """Before training: shift each stage's router to its rate on a batch of the data.

        For training loops of one's own, on one rank; `engine` does it by itself, on many.
        """
        with counting(self):
            self._rates().calibrate(lambda: self.hidden(input_ids, document_ids, tracks))

    def after_step(self) -> dict[str, float]:
        """After each optimizer step: move every stage's rate by what was counted since the last.

        Forward passes in training mode count, all micro-batches of a step together. Without these
        calls nothing holds the asked rate, and `ratio_loss` stays 0.

        Returns:
            `merge/0/kept` and so on, as in `metrics.jsonl`; see `layers.merging.rate.Rate.update`.
        """
        return named_figures(self._rates().update())

    def _rates(self) -> Rates:
        if self.provider.size * self.provider.stream.size > 1:
            raise UserError(
                f"this is rank {self.provider.rank} of a model that several share, and counts its "
                "own part only: train it by megatron_hyena.engine, which keeps the rates of all"
            )
        return Rates(self)

    def stored(self) -> dict[str, Tensor]:
        """Everything a saved model holds, by name: parameters, and the state of rate controls."""
        return dict(self.named_parameters()) | rate_state(self)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` of the dense model; see `model.folder`."""
        write_folder(Path(folder), self.config, self.stored())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> HyenaGLT:
        """Read what `save_pretrained` wrote.

        Raises:
            UserError: a file is missing, damaged, or holds other tensors than the model needs.
        """
        model = cls(read_config(Path(folder)))
        read_weights(Path(folder), model.stored())
        return model
