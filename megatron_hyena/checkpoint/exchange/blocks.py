"""The tensors of models of the StripedHyena family, for vortex and stripedhyena alike.

Both name tensors alike and differ in orders of rows, biases and the modes of L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.hyena_forms import decayed_taps
from megatron_hyena.checkpoint.exchange.mapping import (
    COLUMN,
    HALVES,
    SAME,
    Entry,
    Form,
    then,
    zeros,
)
from megatron_hyena.checkpoint.exchange.rope import Rope
from megatron_hyena.checkpoint.exchange.rows import (
    heads_inside,
    shared,
    split_by_head,
    split_whole,
)
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError

Modes = Callable[[str], list[Entry]]
"""Entries of the modes of an L layer, of the block's prefix such as `blocks.3.`."""


IDLE_MLP = 16
"""Inner width of MLPs of zeros, which these programs have where our blocks have none."""


@dataclass(frozen=True)
class Layout:
    """How a file lays out what the architecture leaves open.

    Attributes:
        rows: of Hyena projections: `interleaved`, `by head` or `whole`.
        qkv_by_head: `Wqkv` lies head after head.
        se_groups, mr_groups: filters of S and M that are stored.
        projection_bias, featurizer_bias, output_bias: what is stored.
        unembed: a copy of the embedding of a tied model is stored.
        idle_mlp: inner width of the MLPs of zeros that stand for none.
    """

    se_groups: int = 1
    mr_groups: int = 1
    rows: str = "interleaved"
    qkv_by_head: bool = True
    projection_bias: bool = False
    featurizer_bias: bool = False
    output_bias: bool = True
    unembed: bool = False
    idle_mlp: int = IDLE_MLP


def table(config: HyenaGLTConfig, layout: Layout, modes: Modes) -> list[Entry]:
    """Which tensors of ours are which of theirs."""
    entries = [
        Entry(("final_norm.weight",), ("norm.scale",), SAME),
        *_vocabulary(config.tie_embeddings, layout.unembed),
    ]
    for number, sign in enumerate(config.signs):
        block = Block(config, layout, f"blocks.{number}.")
        entries += block.around()
        if sign == "A":
            entries += block.attention()
            continue
        entries += block.hyena()
        entries += {"S": block.short, "M": block.medium, "L": lambda: []}[sign]()
        if sign == "L":
            entries += [*modes(block.at), block.entry("mixer.skip", "filter.D")]
    return entries


def _vocabulary(tied: bool, copied: bool) -> list[Entry]:
    ours, embedding, unembed = "embedding.weight", "embedding_layer.weight", "unembed.weight"
    if tied and copied:
        twice = Form(lambda t: (t, t), lambda first, second: (_equal(first, second),))
        return [Entry((ours,), (embedding, unembed), twice)]
    found = [Entry((ours,), (embedding,), SAME)]
    return found if tied else [*found, Entry(("head.weight",), (unembed,), SAME)]


def _equal(first: Tensor, second: Tensor) -> Tensor:
    if not first.is_meta and not torch.equal(first, second):
        raise UserError(
            "unembed.weight is not embedding_layer.weight, though tie_embeddings is true; set "
            "tie_embeddings: False in the settings"
        )
    return first


class Block:
    """Entries of one block; `at` is its prefix."""

    def __init__(self, config: HyenaGLTConfig, layout: Layout, at: str) -> None:
        self.config, self.layout, self.at = config, layout, at
        self.width = config.hidden_size

    def entry(self, ours: str, theirs: str, form: Form = SAME) -> Entry:
        """One tensor of this block for one."""
        return Entry((self.at + ours,), (self.at + theirs,), form)

    def bias(
        self, ours: str, theirs: str, form: Form, in_file: bool, in_model: bool
    ) -> list[Entry]:
        """A bias of three streams, which is 0 where one of the two has none."""
        rows = (3 * self.width,)
        if in_file and in_model:
            return [self.entry(ours, theirs, form)]
        if in_file:
            return [Entry((), (self.at + theirs,), constant(torch.zeros(rows)))]
        return [Entry((self.at + ours,), (), zeros(rows))] if in_model else []

    def around(self) -> list[Entry]:
        """Norms and MLP."""
        if not self.config.ffn:
            return [self.entry("mixer_norm.weight", "pre_norm.scale"), *self.idle()]
        halves = (f"{self.at}mlp.l1.weight", f"{self.at}mlp.l2.weight")
        return [
            self.entry("mixer_norm.weight", "pre_norm.scale"),
            self.entry("mlp_norm.weight", "post_norm.scale"),
            Entry((f"{self.at}mlp.gate_value",), halves, HALVES),
            self.entry("mlp.output", "mlp.l3.weight"),
        ]

    def idle(self) -> list[Entry]:
        """An MLP of zeros, and its norm: nothing of ours."""
        wide, width = self.layout.idle_mlp, self.width
        made = {
            "post_norm.scale": torch.ones(width),
            "mlp.l1.weight": torch.zeros(wide, width),
            "mlp.l2.weight": torch.zeros(wide, width),
            "mlp.l3.weight": torch.zeros(width, wide),
        }
        return [Entry((), (self.at + name,), constant(t)) for name, t in made.items()]

    def hyena(self) -> list[Entry]:
        """Projection, featurizer and output."""
        config, layout = self.config, self.layout
        order = row_order(config, layout)
        bias = self.entry("mixer.bias", "out_filter_dense.bias")
        if not layout.output_bias:
            bias = Entry(bias.ours, (), zeros((self.width,)))
        has = config.projection_bias
        return [
            self.entry("mixer.projection", "projections.weight", order),
            self.entry("mixer.featurizer", "filter.short_filter_weight", then(order, COLUMN)),
            self.entry("mixer.output", "out_filter_dense.weight"),
            bias,
            *self.bias(
                "mixer.projection_bias", "projections.bias", order, layout.projection_bias, has
            ),
            *self.bias(
                "mixer.featurizer_bias",
                "filter.short_filter_bias",
                order,
                layout.featurizer_bias,
                has,
            ),
        ]

    def short(self) -> list[Entry]:
        """Taps of S, the last of the current position in both."""
        fold = shared(self.config.groups, self.layout.se_groups)
        return [self.entry("mixer.taps", "filter.h", then(fold, COLUMN))]

    def medium(self) -> list[Entry]:
        """Taps of M, the first of the current position in both, and the skip."""
        fold = shared(self.config.groups, self.layout.mr_groups)
        form = then(decayed_taps(self.config), then(fold, COLUMN))
        return [self.entry("mixer.taps", "filter.h", form), self.entry("mixer.skip", "filter.D")]

    def attention(self) -> list[Entry]:
        """`Wqkv`, output, and the frequencies of RoPE, which the settings tell."""
        config, own = self.config, "inner_mha_cls."
        order = qkv_order(config, self.layout)
        return [
            self.entry("mixer.projection", f"{own}Wqkv.weight", order),
            self.entry("mixer.output", f"{own}out_proj.weight"),
            self.entry("mixer.bias", f"{own}out_proj.bias"),
            Entry((), (f"{self.at}{own}rotary_emb.inv_freq",), frequencies(config)),
            *self.bias(
                "mixer.projection_bias",
                f"{own}Wqkv.bias",
                order,
                self.layout.projection_bias,
                config.projection_bias,
            ),
        ]


def constant(tensor: Tensor) -> Form:
    """Theirs where we have nothing."""
    return Form(lambda: (tensor,), lambda _: ())


def row_order(config: HyenaGLTConfig, layout: Layout) -> Form:
    """Rows of Hyena projections."""
    if layout.rows == "interleaved":
        return SAME
    if layout.rows == "by head":
        return split_by_head(config.hidden_size, config.num_heads)
    return split_whole(config.hidden_size)


def qkv_order(config: HyenaGLTConfig, layout: Layout) -> Form:
    """Rows of `Wqkv`."""
    return SAME if layout.qkv_by_head else heads_inside(config.hidden_size, config.num_heads)


def frequencies(config: HyenaGLTConfig) -> Form:
    """RoPE's, of the base; the scaling is among the settings."""
    rope = Rope(config.rope_base, config.rope_scaling, config.rope_bf16)
    head_dim = config.hidden_size // config.num_heads
    return Form(lambda: (rope.frequencies(head_dim),), lambda _: (), exact=False)
