"""What each rank holds after every step of a run in bfloat16, as hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from megatron_hyena.layers.parameter import cut_of
from tests.parallel.engine_cases import Run, configure, engine_of, micro_batches

STEPS = 25


@dataclass(frozen=True)
class Held:
    """One rank's parameters.

    Attributes:
        tensor_rank: the rank's place among those that share each layer.
        replicated: names of the parameters that every tensor rank holds whole.
        hashes: of each parameter by name, before the first step and after each.
        losses: of each step.
    """

    tensor_rank: int
    replicated: set[str]
    hashes: list[dict[str, str]]
    losses: list[float]


def train_and_hash(runs: list[Run]) -> dict[Run, Held]:
    """On each rank: `STEPS` steps of every run, on batches that differ from rank to rank."""
    from megatron_hyena.parallel.mesh import destroy_mesh

    results = {}
    for run in runs:
        config = configure(run, {"train.steps": STEPS})
        engine = engine_of(config)
        ranks = engine.mesh.data_rank, engine.mesh.data_size
        hashes, losses = [_hashes(engine.model)], []
        for step in range(STEPS):
            batches = micro_batches(config, run.packed, step, *ranks)
            losses.append(engine.train_step(batches).loss)
            hashes.append(_hashes(engine.model))
        parameters = engine.model.named_parameters()
        replicated = {name for name, p in parameters if cut_of(p).dim is None}
        results[run] = Held(engine.mesh.tensor_rank, replicated, hashes, losses)
        destroy_mesh()
    return results


@torch.no_grad()
def _hashes(model: nn.Module) -> dict[str, str]:
    return {
        name: hashlib.sha256(p.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, p in model.named_parameters()
    }
