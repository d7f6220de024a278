"""`G` with conservation scores on four ranks, and the same layer on one; double precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch.distributed as dist
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.layers.genomic import GenomicHyenaOperator
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from tests.oracles.documents import numbered
from tests.oracles.drawing import draw, open_branches

LENGTH, BATCH, WIDTH = 64, 2, 32
LAYOUTS = {"tp4": (4, 1), "cp4": (1, 4), "tp2-cp2": (2, 2)}
CONFIG = HyenaGLTConfig(
    pattern="G",
    hidden_size=WIDTH,
    hyena_filter_order=8,
    max_sequence_length=LENGTH,
    motif_length=40,
    hyena_output_gate=True,
    init_std=0.2,
)
FILTERS = ("implicit", "genomic")
# On the first and the last position of a stretch, one position long, across three stretches.
IDS = numbered(LENGTH, [[16, 31, 32], [5, 62]])
PACKED = (False, True)


@dataclass(frozen=True)
class Outcome:
    """Outputs of a rank's stretch [l, B, h], and gradients of its parts of the parameters."""

    start: int
    output: Tensor
    gradients: dict[str, Tensor]


def scores() -> Tensor:
    """[B, L]: unknown in a third of the places, in one row for a whole stretch."""
    score = 2 * draw(BATCH, LENGTH, seed=3)
    score[draw(BATCH, LENGTH, seed=4) > 0.5] = math.nan
    score[1, 16:32] = math.nan
    return score


def layer_of(filter_name: str, provider=None) -> GenomicHyenaOperator:
    """The layer with that long filter; its share of a rank, or dense."""
    config = replace(CONFIG, hyena_filter=filter_name)
    return GenomicHyenaOperator(config, provider or DenseProvider())


def run(filter_name: str, packed: bool, provider, mesh=None) -> Outcome:
    """One forward and backward pass of this rank's share of the layer."""
    layer = layer_of(filter_name, provider)
    initialise(layer, 6, provider.rank, provider.size)
    open_branches(layer.double(), provider.rank, provider.size)
    rank, size = provider.context.rank, provider.context.size
    length = LENGTH // size
    here = slice(rank * length, (rank + 1) * length)
    span = Span.of_rank(rank, length, Documents.from_ids(IDS) if packed else None)
    span = replace(span, tracks={"conservation": scores()[:, here]})
    output = layer(draw(LENGTH, BATCH, WIDTH, seed=1)[here], span)
    (output * draw(LENGTH, BATCH, WIDTH, seed=2)[here]).sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(layer.named_parameters()).keys()
    for gradient in gradients.values() if mesh else ():
        dist.all_reduce(gradient, group=mesh.context)
    return Outcome(here.start, output.detach(), gradients)


def on_ranks() -> dict[tuple[str, str, bool], Outcome]:
    """On each of four ranks: (layout, filter, packed) -> outcome."""
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh
    from megatron_hyena.parallel.provider import MegatronProvider

    results = {}
    for layout, (tensor, context) in LAYOUTS.items():
        mesh = build_mesh(tensor, context)
        exchanges = {"G": "all_to_all"} if context > 1 else {}
        provider = MegatronProvider(mesh, False, exchanges).of_layer("G")
        for name in FILTERS:
            for packed in PACKED:
                results[layout, name, packed] = run(name, packed, provider, mesh)
        destroy_mesh()
    return results


def on_one(filter_name: str, packed: bool) -> Outcome:
    """The dense layer."""
    return run(filter_name, packed, DenseProvider())
