"""A causal model that reads and writes base by base: rows of any lengths side by side.

    decoder = Decoder.read(model, prompts, room=100)     # prompts: ids [l] each, of any lengths
    decoder.logits                                       # [B, V], of each row's next byte
    decoder.step(ids)                                    # ids [B]; the logits behind them

Prompts are read by the parallel pass (`model.stream`), whose state is turned into that of the
steps; the bytes behind the last whole window of a merged model go through the steps themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.config.pattern import Stage
from megatron_hyena.errors import UserError
from megatron_hyena.generation.attention import Turn
from megatron_hyena.generation.byte_features import ByteFeatures
from megatron_hyena.generation.carried import Carried, Now, Past
from megatron_hyena.generation.mixers import mixer_step
from megatron_hyena.generation.mlp import MlpStep
from megatron_hyena.generation.norm import NormStep
from megatron_hyena.generation.plan import Plan
from megatron_hyena.generation.stage import Inside, StageStep
from megatron_hyena.layers.merging.stage import MergedStage
from megatron_hyena.model.hyena_glt import Block, HyenaGLT
from megatron_hyena.model.inputs import check_length
from megatron_hyena.model.stream import Stream
from megatron_hyena.ops.fir import compute_dtype

PIECE = 4096
"""Bytes of a prompt that are read at a time, or one window of the model's if that is more."""


class BlockStep(Inside):
    """One residual block."""

    def __init__(self, block: Block, sign: str, rows: int, steps: int, plan: Plan) -> None:
        self.mixer = mixer_step(block.mixer, sign, rows, steps, plan)
        self.mixer_norm = NormStep(block.mixer_norm)
        self.mlp = MlpStep(block.mlp) if block.has_mlp else None
        if block.has_mlp:
            self.mlp_norm = NormStep(block.mlp_norm)

    def parts(self) -> list[Carried]:
        """See `Carried.parts`."""
        return [self.mixer]

    def settle(self, rows: int) -> None:
        """See `Carried.settle`."""
        super().settle(rows)
        if self.mlp is not None:
            self.mlp.settle(rows)

    def step(self, x_BH: Tensor, now: Now) -> Tensor:
        """See `Inside.step`."""
        self.mixer.add(self.mixer_norm(x_BH), x_BH, now)
        if self.mlp is not None:
            self.mlp.add(self.mlp_norm(x_BH), x_BH)
        return x_BH

    def idle(self, active_B: Tensor) -> None:
        """See `Inside.idle`."""
        self.mixer.idle(active_B)

    def take(self, past: Past) -> None:
        """See `Inside.take`."""
        self.mixer.take(past)


class Series(Inside):
    """Blocks and stages in the order of the pattern."""

    def __init__(self, items: list[Inside]) -> None:
        self.items = items

    def parts(self) -> list[Carried]:
        """See `Carried.parts`."""
        return list(self.items)

    def step(self, x_BH: Tensor, now: Now) -> Tensor:
        """See `Inside.step`."""
        for item in self.items:
            x_BH = item.step(x_BH, now)
        return x_BH

    def idle(self, active_B: Tensor) -> None:
        """See `Inside.idle`."""
        for item in self.items:
            item.idle(active_B)

    def take(self, past: Past) -> None:
        """See `Inside.take`."""
        for item in self.items:
            item.take(past)


class Decoder:
    """See the module. No gradient passes.

    Matrices are shared with the model; filters and norms are made from its weights here, so a model
    that was trained on, cast or moved needs a new decoder.

    Args:
        model: causal, on one rank.
        rows: sequences side by side, B.
        plan: how far rows may come.
        types: type of each row's sequence, int64 [B], for models that read the track `type`.

    Attributes:
        length_B: bytes read and written of each row, int64.
        logits: of each row's next byte [B, V]; undefined before the first.

    Raises:
        UserError: the model is not causal or is shared by ranks, a layer that has no steps, more
            bytes than its filters are made for, or a fit that is not good enough.
    """

    def __init__(self, model: HyenaGLT, rows: int, plan: Plan, types: Tensor | None = None) -> None:
        _check(model)
        check_length(plan.longest, model.longest)
        self.model, self.config = model, model.config
        self.weight = model.embedding.weight
        self.wide = compute_dtype(self.weight)
        self.length_B = torch.zeros(rows, dtype=torch.int64, device=self.weight.device)
        self.types = types
        self.features = ByteFeatures.of(model, rows)
        self.turn = Turn(self.config, self.wide, self.weight.device)
        self.turned = bool(set("AW") & set(self.config.signs))
        self.logits = self.weight.new_zeros(rows, self.config.vocab_size)
        signs = self.config.signs
        steps = plan.room + model.merging_multiple - 1  # those of an open window, and of writing

        def series(items: tuple[int | Stage, ...]) -> Series:
            made: list[Inside] = []
            for item in items:
                if isinstance(item, Stage):
                    stage = cast(MergedStage, model.stages[item.number])
                    made.append(StageStep(stage, series(item.items), rows))
                else:
                    block = cast(Block, model.blocks[item])
                    made.append(BlockStep(block, signs[item], rows, steps, plan))
            return Series(made)

        with torch.inference_mode():
            self.final_norm = NormStep(model.final_norm)
            self.series = series(model.layout.items)
            self.series.settle(rows)

    @classmethod
    @torch.inference_mode()
    def read(
        cls,
        model: HyenaGLT,
        prompts: Sequence[Tensor],
        room: int,
        types: Tensor | None = None,
        plan: Plan | None = None,
    ) -> Decoder:
        """Behind `prompts`, ids [l] each, of any lengths from 1 up.

        Args:
            room: bytes that will be written to each, at most.
            types: see the class.
            plan: that says so, and more; None makes one.
        Raises:
            UserError: see the class; an empty prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        if not lengths or min(lengths) < 1:
            raise UserError("a prompt is empty; give each sequence one base or more to begin with")
        plan = plan or Plan(room, max(lengths) + room)
        parts, order = list[Decoder](), list[int]()
        for length in sorted(set(lengths)):
            rows = [row for row, found in enumerate(lengths) if found == length]
            kinds = None if types is None else types[rows]
            part = cls(model, len(rows), plan, kinds)
            part._read(torch.stack([prompts[row] for row in rows]).to(part.weight.device))
            parts.append(part)
            order += rows
        first = parts[0]
        if len(parts) > 1:
            first._join(parts[1:])
            first.select(torch.tensor(order).argsort())
        return first

    def _read(self, ids_BL: Tensor) -> None:
        """A group of prompts of one length."""
        multiple = self.model.merging_multiple
        closed = ids_BL.shape[1] // multiple * multiple
        if closed:
            stream, size = Stream(self.model), max(1, PIECE // multiple) * multiple
            for part in ids_BL[:, :closed].split(size, dim=1):
                types = None if self.types is None else self.types[:, None].expand(part.shape)
                found = stream.feed(part, None if types is None else {"type": types})
            self.logits = found.logits[:, -1]
            state = iter(stream.remembered)
            self.series.take(Past(state, closed))
            assert next(state, None) is None, "a layer left some of what is remembered"
            self.features.read(ids_BL[:, :closed])
            self.length_B += closed
        for at in range(closed, ids_BL.shape[1]):
            self.step(ids_BL[:, at])

    @torch.inference_mode()
    def step(self, ids_B: Tensor) -> Tensor:
        """Go on by one byte in each row, int64 [B]: the logits [B, V] of the next."""
        x = F.embedding(ids_B, self.weight)
        if self.model.types is not None:
            kinds = self.model.types.default if self.types is None else self.types
            x = x + self.model.types.weight[kinds].to(x.dtype)
        x = self.series.step(x, self._now(ids_B))
        self.length_B = self.length_B + 1
        self.logits = F.linear(self.final_norm(x), self.model.head.weight)
        return self.logits

    def _now(self, ids_B: Tensor) -> Now:
        cos = sin = first = None
        if self.turned:
            cos, sin = self.turn(self.length_B)
        if self.model.stages:
            first = self.length_B == 0
        features, complexity = self.features.next(ids_B, self.length_B)
        return Now(None, cos, sin, first, features, complexity)

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Keep some rows, int64 indices, in that order; one may be named more than once."""
        rows = rows.to(self.length_B.device)
        self.length_B, self.logits = self.length_B[rows], self.logits[rows]
        self.types = None if self.types is None else self.types[rows]
        self.features.select(rows)
        self.series.select(rows)
        self.series.settle(len(rows))

    def _join(self, others: Sequence[Decoder]) -> None:
        """Append the rows of other decoders of the same model and room."""
        every = (self, *others)
        self.length_B = torch.cat([one.length_B for one in every])
        self.logits = torch.cat([one.logits for one in every])
        if self.types is not None:
            self.types = torch.cat([one.types for one in every if one.types is not None])
        self.features.join([one.features for one in others])
        self.series.join([one.series for one in others])
        self.series.settle(len(self.length_B))

    @property
    def memory_bytes(self) -> int:
        """Size of all state; it grows with the length if the pattern has `A`."""
        return self.series.nbytes + self.features.nbytes


def _check(model: HyenaGLT) -> None:
    if not model.config.causal:
        raise UserError(
            "model.causal is false: bytes see those behind them, so the model cannot write; train "
            "with model.causal=true"
        )
    if model.provider.size * model.provider.stream.size > 1:
        raise UserError(
            "the model is shared by several ranks; write with the whole of it on one, as "
            "checkpoint.dense.load_dense reads it"
        )
