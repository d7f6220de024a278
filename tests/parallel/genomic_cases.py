"""A model of `G` with conservation scores on four ranks, and the same on one; double precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.documents import numbered
from tests.oracles.drawing import draw, open_branches

# Stretches of 16 on four ranks, fewer than the 39 positions before that a motif reaches; the last
# two positions are padding.
LENGTH, BATCH = 62, 2
LAYOUTS = {"tp4-sp": (4, 1), "cp4": (1, 4), "tp2-sp-cp2": (2, 2)}
CONFIG = HyenaGLTConfig(
    pattern="GSG",
    hidden_size=32,
    num_filter_groups=8,
    ffn_hidden_size=-1,
    vocab_size=64,
    hyena_filter_order=8,
    max_sequence_length=64,
    motif_length=40,
    hyena_output_gate=True,
    init_std=0.2,
)
FILTERS = ("implicit", "genomic")
PACKED = (False, True)
# On the first and the last position of a stretch, one position long, across three stretches.
IDS = numbered(LENGTH, [[16, 31, 32], [5, 61]])


@dataclass(frozen=True)
class Outcome:
    """Nats of a rank's stretch, which begins at `start`, and gradients of its parts."""

    start: int
    nats: Tensor
    gradients: dict[str, Tensor]


def scores() -> Tensor:
    """[B, L] in fp32: unknown in a third of the places, in one row for a whole stretch."""
    score = 2 * draw(BATCH, LENGTH, seed=3)
    score[draw(BATCH, LENGTH, seed=4) > 0.5] = math.nan
    score[1, 16:32] = math.nan
    return score.float()


def model_of(filter_name: str, provider=None) -> HyenaGLT:
    """With that long filter, branches and gates open, in fp64; a rank's share, or dense."""
    model = HyenaGLT(replace(CONFIG, hyena_filter=filter_name), provider, seed=6).double()
    open_branches(model, model.provider.rank, model.provider.size)
    return model


def run(model: HyenaGLT, packed: bool, scored: bool = True, mesh=None) -> Outcome:
    """One forward and backward pass of this rank's share."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, CONFIG.vocab_size, (BATCH, LENGTH + 1), generator=generator)
    tracks = {"conservation": scores()} if scored else {}
    documents = IDS if packed else None
    nats = model.token_losses(tokens[:, :-1], tokens[:, 1:], documents, tracks)
    (nats * model.stretch(draw(BATCH, LENGTH, seed=2), 0.0)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for gradient in gradients.values() if mesh else ():
        dist.all_reduce(gradient, group=mesh.replicas)
    start = model.provider.context.rank * nats.shape[1]
    return Outcome(start, nats.detach(), gradients)


def on_ranks() -> dict[tuple[str, str, bool], Outcome]:
    """On each of four ranks: (layout, filter, packed) -> outcome."""
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh
    from megatron_hyena.parallel.provider import MegatronProvider, sum_partial_gradients

    results = {}
    for layout, (tensor, context) in LAYOUTS.items():
        mesh = build_mesh(tensor, context)
        exchanges = {"G": "all_to_all", "S": "halo"} if context > 1 else {}
        provider = MegatronProvider(mesh, "sp" in layout, exchanges)
        for name in FILTERS:
            for packed in PACKED:
                model = model_of(name, provider)
                sum_partial_gradients(model, provider)
                results[layout, name, packed] = run(model, packed, mesh=mesh)
        destroy_mesh()
    return results


def on_one(filter_name: str, packed: bool, scored: bool = True) -> Outcome:
    """The dense model."""
    return run(model_of(filter_name), packed, scored)
