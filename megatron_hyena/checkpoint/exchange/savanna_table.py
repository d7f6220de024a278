"""savanna's tensors by name: which of ours they are, and how the numbers change.

Rows of Hyena projections interleave as ours do (old runs: per tensor rank all post gates, all pre
gates, all v); attention lies head after head, as ours. S's taps end with the current position. M
stores taps h and their decay apart, as long as the training sequence, and L its rates as p + gamma.
H channels, N blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.blocks import constant, frequencies
from megatron_hyena.checkpoint.exchange.mapping import COLUMN, HALVES, SAME, Entry, Form, then
from megatron_hyena.checkpoint.exchange.rows import shared, split_by_head
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.model import MR_SLOWEST_DECAY
from megatron_hyena.layers.striped import mr_decay

LENGTH = 8192
"""Length of stored filters of a model that was not made by savanna: that of Evo 2's pretraining."""


@dataclass(frozen=True)
class Layout:
    """How a checkpoint lays out what the architecture leaves open.

    Attributes:
        norm: last part of the names of norms: `weight` (Transformer Engine) or `scale`.
        final_norm: number of the final norm's module.
        length: of stored filters, in positions.
        flat_featurizer, flat_se: taps are [n, K], not [n, 1, K].
        se_groups, mr_groups, li_groups: filters of S, M and L that are stored.
        se_bias: numbers of an S layer's `conv_bias`; 0 for none.
        split: tensor ranks of a run without interleaved projections; 0: interleaved.
        idle_mlp: inner width of the MLPs of zeros that stand for none.
    """

    norm: str
    final_norm: int
    length: int
    flat_featurizer: bool
    flat_se: bool
    se_groups: int
    mr_groups: int
    li_groups: int
    se_bias: int
    split: int
    idle_mlp: int


def plain_layout(config: HyenaGLTConfig) -> Layout:
    """That of a model which savanna has not made."""
    return Layout(
        norm="scale" if config.norm_eps_outside else "weight",
        final_norm=len(config.signs) + 3,
        length=max(LENGTH, config.mr_filter_length),
        flat_featurizer=True,
        flat_se=False,
        se_groups=config.groups,
        mr_groups=config.groups,
        li_groups=config.hidden_size,
        se_bias=config.hidden_size if config.se_skip else 0,
        split=0,
        idle_mlp=-(-least_inner(config) // 64) * 64,
    )


def least_inner(config: HyenaGLTConfig) -> int:
    """Inner width of the narrowest MLP that savanna makes: 8/3 of the width."""
    return int(2 * config.hidden_size * 4 / 3)


def table(config: HyenaGLTConfig, layout: Layout) -> list[Entry]:
    """Which tensors of ours are which of theirs."""
    count = len(config.signs)
    entries = [
        Entry(("embedding.weight",), ("sequential.0.word_embeddings.weight",), SAME),
        Entry(
            ("final_norm.weight",), (f"sequential.{layout.final_norm}.norm.{layout.norm}",), SAME
        ),
    ]
    if not config.tie_embeddings:
        head = f"sequential.{count + 4}.final_linear.weight"
        entries.append(Entry(("head.weight",), (head,), SAME))
    for number, sign in enumerate(config.signs):
        block = Block(config, layout, number)
        entries += block.around()
        entries += block.attention() if sign == "A" else block.hyena()
        entries += {"S": block.short, "M": block.medium, "L": block.long, "A": list}[sign]()
    return entries


class Block:
    """Entries of one block."""

    def __init__(self, config: HyenaGLTConfig, layout: Layout, number: int) -> None:
        self.config, self.layout = config, layout
        self.ours, self.theirs = f"blocks.{number}.", f"sequential.{number + 2}."

    def entry(self, ours: str, theirs: str, form: Form = SAME) -> Entry:
        """One tensor of this block for one."""
        return Entry((self.ours + ours,), (self.theirs + theirs,), form)

    def around(self) -> list[Entry]:
        """Norms, MLP and output."""
        return [
            self.entry("mixer_norm.weight", f"input_layernorm.{self.layout.norm}"),
            self.entry("mixer.output", "mixer.dense.weight"),
            self.entry("mixer.bias", "mixer.dense.bias"),
            *(self.mlp() if self.config.ffn else self.idle()),
        ]

    def mlp(self) -> list[Entry]:
        """MLP and its norm."""
        halves = (f"{self.theirs}mlp.w1.weight", f"{self.theirs}mlp.w2.weight")
        return [
            self.entry("mlp_norm.weight", f"pre_mlp_layernorm.{self.layout.norm}"),
            Entry((f"{self.ours}mlp.gate_value",), halves, HALVES),
            self.entry("mlp.output", "mlp.w3.weight"),
        ]

    def idle(self) -> list[Entry]:
        """An MLP of zeros, and its norm: nothing of ours."""
        inner, width = self.layout.idle_mlp, self.config.hidden_size
        made = {
            f"pre_mlp_layernorm.{self.layout.norm}": torch.ones(width),
            "mlp.w1.weight": torch.zeros(inner, width),
            "mlp.w2.weight": torch.zeros(inner, width),
            "mlp.w3.weight": torch.zeros(width, inner),
        }
        return [Entry((), (self.theirs + name,), constant(t)) for name, t in made.items()]

    def attention(self) -> list[Entry]:
        """Projection, and the frequencies of RoPE, which the settings tell."""
        stored = Entry((), (f"{self.theirs}mixer.rotary_emb.inv_freq",), frequencies(self.config))
        return [self.entry("mixer.projection", "mixer.dense_projection.weight"), stored]

    def hyena(self) -> list[Entry]:
        """Projection and featurizer."""
        split = self.layout.split
        order = split_by_head(self.config.hidden_size, split) if split else SAME
        taps = order if self.layout.flat_featurizer else then(order, COLUMN)
        return [
            self.entry("mixer.projection", "mixer.dense_projection.weight", order),
            self.entry("mixer.featurizer", "mixer.hyena_proj_conv.short_conv_weight", taps),
        ]

    def short(self) -> list[Entry]:
        """Taps of S, the last of the current position in both, and the skip if there is one."""
        layout, width = self.layout, self.config.hidden_size
        fold = shared(self.config.groups, layout.se_groups)
        taps = fold if layout.flat_se else then(fold, COLUMN)
        found = [self.entry("mixer.taps", "mixer.mixer.short_conv.short_conv_weight", taps)]
        if self.config.se_skip:
            bias = shared(width, layout.se_bias or width)
            found.append(self.entry("mixer.skip", "mixer.mixer.conv_bias", bias))
        return found

    def medium(self) -> list[Entry]:
        """Taps of M and their decay, the first of the current position in both, and the skip."""
        names = (f"{self.theirs}mixer.mixer.filter.h", f"{self.theirs}mixer.mixer.filter.decay")
        form = taps_and_decay(self.config, self.layout)
        return [
            Entry((f"{self.ours}mixer.taps",), names, form),
            self.entry("mixer.skip", "mixer.mixer.conv_bias"),
        ]

    def long(self) -> list[Entry]:
        """Modes of L, the positions stored beside them, and the skip."""
        at = f"{self.theirs}mixer.mixer.filter."
        fold = shared(self.config.hidden_size, self.layout.li_groups)
        return [
            Entry((f"{self.ours}mixer.log_rate",), (f"{at}p", f"{at}gamma"), rates(fold)),
            Entry((f"{self.ours}mixer.residue",), (f"{at}R",), fold),
            Entry((), (f"{at}t",), positions(self.layout.length)),
            self.entry("mixer.skip", "mixer.mixer.conv_bias"),
        ]


def whole_decay(config: HyenaGLTConfig, groups: int, length: int) -> Tensor:
    """Our decay of M as savanna stores it, fp32 [groups, length]: on beyond the taps in use."""
    slowest, taps = MR_SLOWEST_DECAY[config.mr_decay], config.mr_filter_length
    decay = torch.ones(groups, length)
    decay[:, :taps] = mr_decay(slowest, groups, taps, torch.float32)
    if slowest is not None and taps > 1:
        rates_G1 = torch.logspace(slowest, 2, groups)[:, None]
        decay[:, taps:] = torch.exp(-rates_G1 * torch.arange(taps, length) / (taps - 1))
    return decay


def taps_and_decay(config: HyenaGLTConfig, layout: Layout) -> Form:
    """M's taps, and h and decay of the stored length.

    Out: h is 0 beyond the taps. Back: of a model whose decay is one of ours, h; else the product.
    """
    taps, groups, length = config.mr_filter_length, layout.mr_groups, layout.length
    fold = shared(config.groups, groups)

    def out(ours: Tensor) -> tuple[Tensor, Tensor]:
        (stored,) = fold.out(ours)
        h = torch.nn.functional.pad(stored, (0, length - taps))
        return h, whole_decay(config, groups, length).to(h.device)

    def back(h: Tensor, decay: Tensor) -> tuple[Tensor]:
        found = h[:, :taps] if config.mr_decay != "none" else (h * decay)[:, :taps]
        return fold.back(found)  # type: ignore[return-value]

    return Form(out, back, exact=False)


def rates(fold: Form) -> Form:
    """log_rate, and p and gamma, of which it is the sum."""

    def out(log_rate: Tensor) -> tuple[Tensor, Tensor]:
        (p,) = fold.out(log_rate)
        return p, torch.zeros_like(p)

    return Form(out, lambda p, gamma: fold.back(p + gamma), exact=False)


def positions(length: int) -> Form:
    """0, 1, … as [1, 1, length], which savanna makes anew in its first pass."""

    def out() -> tuple[Tensor]:
        return (torch.arange(length, dtype=torch.float32)[None, None],)

    return Form(out, lambda _: (), exact=False)
