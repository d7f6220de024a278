"""Saving in one layout and going on in the same or another one, rank by rank, on real shards."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from tests.parallel.engine_cases import Run, configure, engine_of

SAVED, GONE_ON = 2, 2
"""Steps before the checkpoint, and steps compared after it."""
OTHER_SEED = 99
"""Initial weights of an engine about to load others."""


@dataclass(frozen=True)
class Job:
    """A layout, and the run that it begins or goes on with.

    Attributes:
        name: of the run, whose folder it is.
        seed: of the run: of its weights and the order of its data.
    """

    run: Run
    name: str
    seed: int

    def keys(self, folder: Path) -> dict[str, object]:
        """Of the configuration: packed windows of the shards in `folder`."""
        keys = {
            "run.output_dir": folder / self.name,
            "data.train": folder / "shards" / "train",
            "data.pack": True,
        }
        return keys | {"model.vocab_size": 127 if self.run.model == "odd" else 128}


@dataclass(frozen=True)
class Continued:
    """One rank's part of a run around its checkpoint.

    Attributes:
        state: weights and moments when saved, or just loaded, by `kind/name`.
        figures: (loss, gradient norm) of the steps after it.
        last_state: after these.
    """

    state: dict[str, Tensor]
    figures: list[tuple[float, float]]
    last_state: dict[str, Tensor]


def write_corpus(folder: Path) -> None:
    """Shards of many short contigs, some bases unknown, in `folder`/shards."""
    generator = np.random.default_rng(3)
    letters = np.frombuffer(b"ACGTacgtN", np.uint8)
    lengths = generator.integers(2, 160, 100)
    contigs = [generator.choice(letters, n).tobytes() for n in lengths]
    fasta = folder / "contigs.fa"
    fasta.write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(contigs)))
    store = write_store(folder / "genome.zarr", [fasta])
    write_shards(store, folder / "shards", ShardSettings(SplitRule(0, 0), 1000, 4000))


def save_and_go_on(jobs: list[Job], folder: Path) -> dict[Job, Continued]:
    """Each job: `SAVED` steps, a checkpoint in `folder`/name, and `GONE_ON` steps more."""
    from megatron_hyena.engine.saving import save_checkpoint

    results = {}
    for job in jobs:
        with _engine(job, folder, job.seed) as engine, _batches(engine, job, folder) as batches:
            _steps(engine, batches, SAVED)
            state = _state(engine)
            save_checkpoint(engine, folder / job.name / "checkpoints")
            results[job] = Continued(state, _steps(engine, batches, GONE_ON), _state(engine))
    return results


def resume_and_go_on(jobs: list[Job], folder: Path) -> dict[Job, Continued]:
    """Each job: other weights are drawn, those of its name are loaded; `GONE_ON` steps."""
    from megatron_hyena.engine.saving import resume

    results = {}
    for job in jobs:
        with _engine(job, folder, OTHER_SEED) as engine:
            # Weights of another seed, but the order of the data is the run's own.
            config = engine.config
            engine.config = replace(config, run=replace(config.run, seed=job.seed))
            found = resume(engine)
            assert found == folder / job.name / "checkpoints" / f"step_{SAVED:08d}"
            state = _state(engine)
            with _batches(engine, job, folder) as batches:
                results[job] = Continued(state, _steps(engine, batches, GONE_ON), _state(engine))
    return results


def save_often(job: Job, keep: int, folder: Path) -> list[list[str]]:
    """Names under checkpoints after each of three saves (rank 0 made a leftover), and a fourth."""
    from megatron_hyena.engine.saving import save_checkpoint

    checkpoints = folder / job.name / "checkpoints"
    leftover = checkpoints / ".step_00000007"
    leftover.mkdir(parents=True, exist_ok=True)
    (leftover / "tensor_00_of_02.safetensors").write_bytes(b"begun, never finished")
    seen = []
    with _engine(job, folder, job.seed, keep) as engine, _batches(engine, job, folder) as batches:
        for steps in (1, 1, 1, 0):  # the last saves the same step once more
            _steps(engine, batches, steps)
            save_checkpoint(engine, checkpoints)
            torch.distributed.barrier()
            seen.append(sorted(path.name for path in checkpoints.iterdir()))
            torch.distributed.barrier()
    return seen


@contextmanager
def _engine(job: Job, folder: Path, seed: int, keep: int = 0):
    """The engine of a configuration; its mesh is forgotten at the end."""
    from megatron_hyena.parallel.mesh import destroy_mesh

    yield engine_of(configure(job.run, job.keys(folder) | {"checkpoint.keep": keep}, seed))
    destroy_mesh()


def _batches(engine, job: Job, folder: Path):
    """The program's own batches, from where the engine stands."""
    from pretrain.data import open_data, training_batches

    config = configure(job.run, job.keys(folder), job.seed)
    return training_batches(open_data(config).train, config, engine.mesh, engine.step)


def _steps(engine, batches, count: int) -> list[tuple[float, float]]:
    figures = []
    for _ in range(count):
        step, micro_batches = next(batches)
        assert step == engine.step
        result = engine.train_step(micro_batches)
        figures.append((result.loss, result.grad_norm))
    return figures


def _state(engine) -> dict[str, Tensor]:
    from megatron_hyena.engine.state import read_state

    return {
        f"{kind}/{name}": tensor.detach().clone()
        for name, kinds in read_state(engine)
        for kind, tensor in kinds.items()
    }
