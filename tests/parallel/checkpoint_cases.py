"""Saving in one layout and going on in the same or another one, rank by rank."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.parallel.engine_cases import configure, micro_batches

SAVED, RESUMED = 3, 2
"""Steps before the checkpoint, and steps compared after it."""


@dataclass(frozen=True)
class Continued:
    """`weights` (parts of this rank) when saved; (loss, grad norm) of the steps after it."""

    weights: dict[str, Tensor]
    figures: list[tuple[float, float]]
    last_weights: dict[str, Tensor]


def save_and_go_on(saves: dict[str, list[str]], folder: Path) -> dict[str, Continued]:
    """Each named run: three steps, a checkpoint in `folder`/name, and two steps more."""
    from megatron_hyena.engine.saving import save_checkpoint

    results = {}
    for name, overrides in saves.items():
        with _engine([*overrides, f"run.output_dir={folder / name}"]) as engine:
            _steps(engine, SAVED)
            weights = _weights(engine)
            save_checkpoint(engine, folder / name / "checkpoints")
            results[name] = Continued(weights, _steps(engine, RESUMED), _weights(engine))
    return results


def resume_and_go_on(
    resumes: dict[str, tuple[str, list[str]]], folder: Path
) -> dict[str, Continued]:
    """Each name: (checkpoint, run). Weights drawn from another seed, then loaded."""
    from megatron_hyena.engine.saving import resume

    results = {}
    for name, (saved, overrides) in resumes.items():
        with _engine([*overrides, f"run.output_dir={folder / saved}"], seed=99) as engine:
            assert resume(engine) == folder / saved / "checkpoints" / f"step_{SAVED:08d}"
            assert engine.step == SAVED
            weights = _weights(engine)
            results[name] = Continued(weights, _steps(engine, RESUMED), _weights(engine))
    return results


def save_often(overrides: list[str], folder: Path) -> list[list[str]]:
    """Names under `folder`/checkpoints after each of three saves (rank 0 made a leftover)."""
    from megatron_hyena.engine.saving import save_checkpoint

    leftover = folder / "checkpoints" / ".step_00000007"
    leftover.mkdir(parents=True, exist_ok=True)
    (leftover / "tensor_00_of_02.safetensors").write_bytes(b"begun, never finished")
    seen = []
    with _engine([*overrides, f"run.output_dir={folder}"]) as engine:
        for _ in range(3):
            _steps(engine, 1)
            save_checkpoint(engine, folder / "checkpoints")
            torch.distributed.barrier()
            seen.append(sorted(path.name for path in (folder / "checkpoints").iterdir()))
        save_checkpoint(engine, folder / "checkpoints")  # the same step once more
        torch.distributed.barrier()
        seen.append(sorted(path.name for path in (folder / "checkpoints").iterdir()))
    return seen


@contextmanager
def _engine(overrides: list[str], seed: int = 5):
    """The engine of a configuration; its mesh is forgotten at the end."""
    from megatron_hyena.parallel.mesh import destroy_mesh
    from megatron_hyena.runtime.process import Process
    from pretrain.run import build_engine

    ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    yield build_engine(configure(overrides, seed), Process(*ranks, torch.device("cpu")))
    destroy_mesh()


def _steps(engine, count: int) -> list[tuple[float, float]]:
    figures = []
    for _ in range(count):
        ranks = engine.mesh.data_rank, engine.mesh.data_size
        result = engine.train_step(micro_batches(engine.config, engine.step, *ranks))
        figures.append((result.loss, result.grad_norm))
    return figures


def _weights(engine) -> dict[str, Tensor]:
    from megatron_hyena.engine.state import read_state

    return {name: kinds["weight"].detach().clone() for name, kinds in read_state(engine)}
