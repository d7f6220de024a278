"""What a layout sends: bytes per rank and kind of layer for one micro-batch, before it is built.

Counted are the exchanges inside the model, between the ranks that share channels (tensor) and those
that share sequences (context). What DeepSpeed moves between replicas, gradients and ZeRO's shares,
is not. The counters of a run (`parallel.traffic`) come to the same numbers, which tests compare.
T tensor ranks, N context ranks, l positions of a rank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from megatron_hyena.config import Config, exchange_of
from megatron_hyena.config.merging import (
    StageShape,
    block_shares,
    merging_multiple,
    stage_shapes,
    stage_shares,
)
from megatron_hyena.config.pattern import parse_layout
from megatron_hyena.layers.hyena_order import HyenaOperator
from megatron_hyena.layers.merging.stage import merging_numbers
from megatron_hyena.layers.mixer import Message
from megatron_hyena.model.hyena_glt import mixer_class

GATHER, SCATTER, REDUCE = 1, 1, 2
"""Multiples of (T - 1) / T of the whole tensor that a rank sends: see `parallel.provider`."""
ENDS, MLP, MERGING = "embedding, head", "MLP", "merging"
"""What is not a sign of the pattern."""
WHOLE = Fraction(1)


@dataclass
class Sent:
    """Bytes sent by one rank in forward and in backward passes."""

    forward: int = 0
    backward: int = 0


def predict(config: Config, context_rank: int = 0, tensor_rank: int = 0) -> dict[str, Sent]:
    """Bytes that a rank sends for one micro-batch, forward and backward, by kind of layer.

    Recomputation repeats the forward exchanges of a block but for its last one, whose result the
    backward pass does not need.
    """
    sent: dict[str, Sent] = defaultdict(Sent)
    for sign, share in zip(config.model.signs, block_shares(config.model), strict=True):
        layers = _Layers(config, context_rank, share)
        again = config.parallel.recomputes(sign)
        has_mlp = config.model.ffn > 0
        layers.mixer(sent[sign], sign)
        if again:
            layers.mixer(repeated := Sent(), sign)
            sent[sign].forward += repeated.forward - (0 if has_mlp else layers.leave())
        if has_mlp:
            layers.edges(sent[MLP])
            sent[MLP].forward += layers.enter() if again else 0
    whole = _Layers(config, context_rank)
    whole.ends(sent[ENDS], again=any(map(config.parallel.recomputes, config.model.signs)))
    layout = parse_layout(config.model.pattern)
    shapes, shares = stage_shapes(config.model), stage_shares(config.model)
    for stage, shape, share in zip(layout.stages, shapes, shares, strict=True):
        signs = {layout.signs[item] for item in stage.items if isinstance(item, int)}
        read = {name for sign in signs for name in mixer_class(sign).tracks}
        tracks = len(read.intersection(config.data.tracks))
        _Layers(config, context_rank, share).stage(sent[MERGING], shape, tensor_rank, tracks)
    return {kind: one for kind, one in sent.items() if one.forward or one.backward}


def busiest(config: Config) -> dict[str, Sent]:
    """`predict` of the rank that sends most in each direction, by kind of layer."""
    most: dict[str, Sent] = defaultdict(Sent)
    places = product(range(config.parallel.context), range(config.parallel.tensor))
    for context_rank, tensor_rank in places:
        for kind, sent in predict(config, context_rank, tensor_rank).items():
            most[kind].forward = max(most[kind].forward, sent.forward)
            most[kind].backward = max(most[kind].backward, sent.backward)
    return dict(most)


class _Layers:
    """The sizes of one rank's tensors, and what each part of the model sends of them."""

    def __init__(self, config: Config, context_rank: int, share: Fraction = WHOLE) -> None:
        self.config, self.rank = config, context_rank
        self.tensor, self.context = config.parallel.tensor, config.parallel.context
        self.sequence = config.parallel.sequence
        multiple = self.context * (self.tensor if self.sequence else 1)
        multiple *= merging_multiple(config.model)
        self.whole = int(-(-config.data.sequence_length // multiple) * multiple * share)
        self.length = self.whole // self.context
        self.product_bytes = 2 if config.train.precision == "bf16" else 4

    def stream(self, times: int, size: int) -> int:
        """A collective of the tensor ranks on the residual stream [l, B, h]."""
        width = self.config.model.hidden_size * self.config.train.micro_batch_size
        return times * (self.tensor - 1) * self.length * width * size // self.tensor

    def enter(self) -> int:
        """Forward bytes of `Provider.enter`."""
        return self.stream(GATHER, 4) if self.sequence else 0

    def leave(self, size: int | None = None) -> int:
        """Forward bytes of `Provider.leave`."""
        return self.stream(SCATTER if self.sequence else REDUCE, size or self.product_bytes)

    def edges(self, sent: Sent) -> None:
        """Entering and leaving the region where channels are split, there and back."""
        sent.forward += self.enter() + self.leave()
        sent.backward += self.stream(SCATTER if self.sequence else REDUCE, 4)
        sent.backward += self.stream(GATHER, self.product_bytes) if self.sequence else 0

    def mixer(self, sent: Sent, sign: str) -> None:
        """One mixer."""
        model, exchange = self.config.model, exchange_of(self.config, sign)
        mixer = mixer_class(sign, model.causal)
        for _ in range(mixer.parts):
            self.edges(sent)
            if sign in "HG":  # the replicated part of each long filter
                numbers = HyenaOperator.copied_numbers(model, min(self.whole, model.hyena_taps))
                sent.backward += REDUCE * (self.tensor - 1) * numbers * 4 // self.tensor
        for message in [] if exchange == "local" else mixer.messages(model, exchange):
            self.message(sent, message)

    def message(self, sent: Sent, message: Message) -> None:
        """One exchange of the context ranks, and its way back."""
        size = 4 if message.wide else self.product_bytes
        size *= message.numbers // self.tensor * self.config.train.micro_batch_size
        if message.kind == "halo":
            before, behind = self.rank, self.context - 1 - self.rank
            if message.backwards:
                before, behind = behind, before
            sent.forward += size * self._held(message.width, behind)
            sent.backward += size * self._held(message.width, before)
            return
        if message.kind == "gather":
            size *= (self.context - 1) * (self.length if message.width else 1)
        else:
            size = size * self.length * (self.context - 1) // self.context
        sent.forward += size
        sent.backward += size

    def _held(self, width: int, neighbours: int) -> int:
        """Positions of a halo that lie on the `neighbours` nearest ranks, each rank's its own."""
        return min(width, neighbours * self.length)

    def stage(self, sent: Sent, shape: StageShape, tensor_rank: int, tracks: int) -> None:
        """Entry and exit of a merged stage, among all ranks that share the stream.

        Halos of one position, gathers of what scans leave behind, the places of its slots, and the
        `tracks` that blocks inside read.
        """
        ranks = self.context * (self.tensor if self.sequence else 1)
        place = self.rank * self.tensor + tensor_rank if self.sequence else self.rank
        halos, gathers = merging_numbers(self.config.model)
        rows = self.config.train.micro_batch_size
        gathered = 4 * rows * gathers * (ranks - 1)
        sent.forward += gathered + (4 * rows * halos if place < ranks - 1 else 0)
        sent.backward += gathered + (4 * rows * halos if place > 0 else 0)
        slots = self.whole // ranks // shape.window * shape.slots
        sent.forward += 4 * rows * slots * (ranks - 1) * (1 + tracks)

    def ends(self, sent: Sent, again: bool) -> None:
        """Embedding, entry of the head, and the three reductions of the cross-entropy."""
        sent.forward += self.leave(4) + self.enter()
        sent.backward += self.stream(GATHER, 4) if self.sequence else 0
        sent.backward += self.stream(SCATTER if self.sequence else REDUCE, 4)
        losses = self.length * self.config.train.micro_batch_size
        reduced = 3 * REDUCE * (self.tensor - 1) * losses * 4 // self.tensor
        sent.forward += reduced * (2 if again else 1)
