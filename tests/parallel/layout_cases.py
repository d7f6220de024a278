"""What each rank computes for the proofs that layouts agree, and the same on one dense rank.

Everything is in double precision, so that layouts agree to the last few bits or are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.merging import merging_multiple
from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.layers.merging.rate import Rate, rate_state
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import open_branches

# 152 positions: 38 on each of four ranks, fewer than M's 63 and W's 47 earlier ones, and no
# multiple of L's chunk of 64. "uneven" is padded by two.
LENGTH, BATCH, SEED, STEPS = 152, 4, 7, 2
BASE = HyenaGLTConfig(
    hidden_size=32,
    num_heads=4,
    num_filter_groups=8,
    ffn_hidden_size=-1,
    vocab_size=64,
    mr_filter_length=64,
    hyena_filter_order=8,
    max_sequence_length=256,
    attention_window=48,
    init_std=0.2,
)


@dataclass(frozen=True)
class Case:
    """A model and its batch.

    Attributes:
        exchanges: by sign, instead of the first of the table.
        packed: rows hold several documents.
    """

    config: HyenaGLTConfig
    exchanges: tuple[tuple[str, str], ...] = ()
    packed: bool = False
    length: int = LENGTH


MIXED = replace(BASE, pattern="SMLHGAW", ffn_hidden_size=48)
SINGLE = {sign: Case(replace(BASE, pattern=sign)) for sign in "SMLHGAW"}
CASES = SINGLE | {
    "[SMLA]2": Case(replace(BASE, pattern="[SMLA]2", ffn_hidden_size=48)),
    "H3gated": Case(replace(BASE, pattern="H", hyena_order=3, hyena_output_gate=True)),
    "H of few taps": Case(replace(BASE, pattern="H", hyena_filter_size=40, use_fft_conv=False)),
    "G3 genomic": Case(
        replace(BASE, pattern="G", hyena_order=3, hyena_filter="genomic", hyena_filter_size=48)
    ),
    "untied": Case(replace(MIXED, tie_embeddings=False)),
    "others": Case(MIXED, tuple(zip("SMLA", ["all_to_all"] * 3 + ["all_gather"], strict=True))),
    "packed": Case(MIXED, packed=True),
    "others packed": Case(
        MIXED, tuple(zip("SMLA", ["all_to_all"] * 3 + ["all_gather"], strict=True)), packed=True
    ),
    "uneven": Case(MIXED, length=150),
    "uneven packed": Case(MIXED, packed=True, length=150),
}
# What published models have: complex modes, biases, skips, another norm and activation.
PUBLISHED = replace(
    MIXED,
    pattern="SLMAHW",
    li_poles="complex",
    projection_bias=True,
    se_skip=True,
    norm_eps_outside=True,
    mlp_activation="evo2",
    rope_scaling=4.0,
)
CASES |= {
    "published packed": Case(PUBLISHED, packed=True, length=150),
    "published others": Case(
        PUBLISHED, tuple(zip("SMLA", ["all_to_all"] * 3 + ["all_gather"], strict=True))
    ),
}
# Merged stages: on four ranks, three windows of bytes each. Where stages nest, one window of the
# inner stage is several of the outer's, and more than a rank has: the sequence is padded.
MERGED = replace(MIXED, pattern="S(SMLHAW)0.6S", window=16, slots=9)
NESTED = replace(MERGED, pattern="S(M(LA)0.4S)0.4S", slots=12)
CASES |= {
    "merged": Case(MERGED, length=192),
    "merged packed": Case(MERGED, packed=True, length=192),
    "merged others": Case(
        MERGED, tuple(zip("SMLA", ["all_to_all"] * 3 + ["all_gather"], strict=True)), length=192
    ),
    "nested": Case(NESTED, length=192),
    "nested packed": Case(NESTED, packed=True, length=192),
    "trunk, adaptive": Case(
        replace(NESTED, router_input="trunk", adaptive=True, complexity="window"), length=192
    ),
    "words, packed": Case(
        replace(MERGED, adaptive=True, complexity="kmer", merge_fn="mean"), packed=True, length=192
    ),
    "hnet": Case(replace(MERGED, merger="hnet"), length=192),
    "static": Case(replace(MERGED, pattern="S(SA)0.5S", merger="static", slots=0), length=192),
}
# Not causal; 150 is padded, and the padding must stay unseen. Halos, gathers and all-to-alls go
# both ways; threads try the other exchanges (test_span_and_exchange.py).
CASES |= {
    "both ways": Case(replace(MIXED, causal=False), packed=True, length=150),
    "both ways merged": Case(
        replace(
            MERGED, pattern="S(LA)0.6M", causal=False, adaptive=True, complexity="global", gamma=4.0
        ),
        packed=True,
        length=192,
    ),
}


MERGED_CASES = [name for name in CASES if "(" in CASES[name].config.pattern]
BY_HAND = (
    *SINGLE,
    *("merged", "merged others", "nested", "hnet", "static"),
    *("H3gated", "others", "uneven packed", "published others"),
)
"""Cases of the slow suite: others of the default suite have what they have, together."""


@dataclass(frozen=True)
class Layout:
    """How the model is cut; the data-parallel size is what is left of four ranks."""

    tensor: int = 1
    context: int = 1
    sequence: bool = False
    recompute: bool = False

    def __str__(self) -> str:
        ends = f"{'sp' * self.sequence}-cp{self.context}{'-recompute' * self.recompute}"
        return f"tp{self.tensor}{ends}"


REPRESENTATIVE = [Layout(2, 1, True), Layout(1, 4), Layout(2, 2, True), Layout(1, 2)]
RECOMPUTED = Layout(2, 2, True, True)
THE_OTHERS = [
    Layout(),
    Layout(2),
    Layout(4),
    Layout(4, 1, True),
    Layout(2, 2),
    Layout(1, 4, False, True),
]


@dataclass(frozen=True)
class Outcome:
    """One rank's results for one case; tensors by parameter name are this rank's parts.

    `logits` and `nll` are those of its sequences `rows` and of its stretch, which begins at
    `start` and may end behind the sequence. `openings` are those of the slice that is the first of
    `slice` of as many as the second, by stage [B, positions]; `rates` is the state of the rate
    controls after the first step.
    """

    rows: slice
    start: int
    slice: tuple[int, int]
    openings: dict[int, Tensor]
    penalty: Tensor
    rates: dict[str, Tensor]
    initial: dict[str, Tensor]
    logits: Tensor
    nll: Tensor
    loss: Tensor
    label_loss: Tensor
    gradients: dict[str, Tensor]
    trained: dict[str, Tensor]


def batch(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """ids, targets [B, L], unequal weights with zeros [B, L], and document numbers if packed.

    Documents begin at the first and last bytes of the stretches of four ranks, one holds one byte.
    """
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, BASE.vocab_size, (BATCH, case.length + 1), generator=generator)
    weights = torch.rand(BATCH, case.length, generator=generator, dtype=torch.float64)
    begins = torch.zeros(BATCH, case.length, dtype=torch.int64)
    if "(" in case.config.pattern:  # on edges of ranks too
        unit = merging_multiple(case.config)
        begins[0, 48::48] = 1
        begins[1, unit] = 1
        begins[:, torch.arange(case.length) % unit > 0] = 0
    else:
        begins[0, [37, 38, 76, 113, 130]] = 1
        begins[1, [5, 9, 114]] = 1
    documents = begins.cumsum(1) if case.packed else None
    return tokens[:, :-1], tokens[:, 1:], weights * (weights > 0.3), documents


def on_ranks(layouts: list[Layout], names: list[str]) -> dict[str, dict[str, Outcome]]:
    """On four ranks: the named cases in every layout."""
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh

    results: dict[str, dict[str, Outcome]] = {}
    for layout in layouts:
        mesh = build_mesh(layout.tensor, layout.context)
        results[str(layout)] = {name: _on_rank(CASES[name], layout, mesh) for name in names}
        destroy_mesh()
    return results


def _on_rank(case: Case, layout: Layout, mesh) -> Outcome:
    from megatron_hyena.parallel.provider import MegatronProvider, sum_partial_gradients

    exchanges = {sign: SIGNS[sign].exchanges[0] for sign in case.config.signs}
    exchanges |= dict(case.exchanges)
    provider = MegatronProvider(mesh, layout.sequence, exchanges if layout.context > 1 else {})
    recompute = "block" if layout.recompute else "none"
    model = HyenaGLT(case.config, provider, seed=SEED, recompute=recompute)
    sum_partial_gradients(model, provider)
    share = BATCH // mesh.data_size
    rows = slice(mesh.data_rank * share, (mesh.data_rank + 1) * share)
    return train(case, model, rows, mesh, layout.sequence)


def on_one(name: str) -> Outcome:
    """The dense model on the whole batch."""
    case = CASES[name]
    model = HyenaGLT(case.config, DenseProvider(), seed=SEED)
    return train(case, model, slice(0, BATCH), None)


def train(case: Case, model: HyenaGLT, rows: slice, mesh, sequence: bool = False) -> Outcome:
    """Forward, backward, then `STEPS` steps of AdamW clipped to the global norm."""
    open_branches(model, model.provider.rank, model.provider.size)
    initial = _copies(model)
    model.double()
    for rate in _rates(model):  # the ratio loss is to weigh as much as the language model's
        rate.wanted.fill_(0.9)
        rate.weight *= 50
        rate.shift.fill_(0.3)
    ids, targets, weights, documents = batch(case)
    total = weights.sum()
    ids, targets, weights = ids[rows], targets[rows], weights[rows]
    documents = None if documents is None else documents[rows]
    with torch.no_grad():
        model.eval()
        output = model(ids, labels=ids, document_ids=documents)
        model.train()
        nll = model.token_losses(ids, targets, documents)
    gradients: dict[str, Tensor] = {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        parts = model.weighted_losses(ids, targets, weights, documents) / total
        parts.sum().backward()
        for rate in _rates(model):
            rate.update(_sum_counts(rate.take(), mesh, sequence))
        _sum_over_replicas(mesh, [_gradient(p) for p in model.parameters()])
        if step == 0:
            first, penalty = parts.detach().clone()
            _sum_over_replicas(mesh, [first, penalty])
            if sequence:
                dist.all_reduce(penalty, group=mesh.tensor)
            rates = {name: buffer.clone() for name, buffer in rate_state(model).items()}
            gradients = {n: _gradient(p).clone() for n, p in model.named_parameters()}
        _clip(model, mesh, largest=0.1)
        optimizer.step()
    start = model.provider.context.rank * nll.shape[1]
    openings = {
        number: merge.chunks.opens_nWB.flatten(0, 1).t()
        for number, merge in enumerate(output.merges)
    }
    stream = model.provider.stream
    return Outcome(
        rows,
        start,
        (stream.rank, stream.size),
        openings,
        penalty,
        rates,
        initial,
        output.logits,
        nll,
        first,
        output.loss,
        gradients,
        trained=_copies(model),
    )


def _rates(model: HyenaGLT) -> list[Rate]:
    return [module for module in model.modules() if isinstance(module, Rate)]


def _sum_counts(counts: Tensor, mesh, sequence: bool) -> Tensor:
    if mesh:
        dist.all_reduce(counts, group=mesh.replicas)
    if sequence:
        dist.all_reduce(counts, group=mesh.tensor)
    return counts


def _sum_over_replicas(mesh, tensors: list[Tensor]) -> None:
    for tensor in tensors if mesh else []:
        dist.all_reduce(tensor, group=mesh.replicas)


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _clip(model: nn.Module, mesh, largest: float) -> None:
    """The parts of cut parameters are summed over ranks; copies count once."""
    if mesh is None:
        nn.utils.clip_grad_norm_(model.parameters(), largest)
        return
    parts = torch.zeros((), dtype=torch.float64)
    copies = parts.clone()
    for parameter in model.parameters():
        squares = _gradient(parameter).square().sum()
        if cut_of(parameter).dim is None:
            copies += squares
        else:
            parts += squares
    dist.all_reduce(parts, group=mesh.tensor)
    factor = largest / ((parts + copies).sqrt() + 1e-6)
    for parameter in model.parameters():
        _gradient(parameter).mul_(factor.clamp(max=1.0))
