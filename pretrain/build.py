"""The composition root: the one place where the rooms meet.

Everything that can be wrong with a run's input is found here, before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from megatron_hyena.config import Config, check_layout
from megatron_hyena.data.loader import Batch, BatchIterator, evaluation_batches
from megatron_hyena.data.windows import ChosenWindows, SequentialWindows, WindowStream
from megatron_hyena.engine.engine import Engine
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.parallel.mesh import Mesh, build_mesh
from megatron_hyena.parallel.provider import MegatronProvider, sum_partial_gradients
from megatron_hyena.runtime.lock import only_process_in
from megatron_hyena.runtime.process import Process


def build_engine(config: Config, process: Process) -> Engine:
    """The model of this rank under DeepSpeed; weights from `run.seed`."""
    check_layout(config, process.world_size)
    mesh = build_mesh(config.parallel.tensor, config.parallel.context)
    provider = MegatronProvider(mesh.tensor, config.parallel.sequence)
    recompute = config.parallel.recompute == "block"
    model = HyenaGLT(config.model, provider, seed=config.run.seed, recompute=recompute)
    sum_partial_gradients(model, provider)
    return Engine(model, config, mesh, process.device)


def open_stream(config: Config) -> WindowStream:
    """The training windows; checksums of the shards are verified."""
    stream = WindowStream(
        config.data.train,
        config.data.sequence_length,
        config.run.seed,
        augment_reverse_complement=config.data.reverse_complement,
    )
    stream.check_global_batch(config.train.global_batch_size)
    return stream


def training_batches(
    stream: WindowStream, config: Config, mesh: Mesh, start_step: int
) -> BatchIterator:
    """This data rank's micro-batches from `start_step` to the end of the schedule."""
    return BatchIterator(
        stream,
        start_step,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        data_rank=mesh.data_rank,
        data_size=mesh.data_size,
        stop_step=config.train.steps,
    )


def validation_batches(config: Config, mesh: Mesh) -> Callable[[], list[Batch]] | None:
    """A function giving this data rank's validation batches; None without `data.valid`."""
    if not config.data.valid:
        return None
    length = config.data.sequence_length
    windows = SequentialWindows(config.data.valid, length, context=1)
    chosen = ChosenWindows(windows, config.train.valid_sequences)
    size = config.train.micro_batch_size

    def batches() -> list[Batch]:
        return list(evaluation_batches(chosen, size, mesh.data_rank, mesh.data_size))

    return batches


def run_folder(config: Config) -> Path:
    """The run directory."""
    return Path(config.run.output_dir)


@contextmanager
def run_lock(folder: Path, process: Process) -> Iterator[None]:
    """Keep a second run out of `folder`; rank 0 holds the lock and tells the others."""
    with ExitStack() as stack:
        refused = [""]
        if process.is_main:
            try:
                stack.enter_context(only_process_in(folder))
            except UserError as error:
                refused = [str(error)]
        dist.broadcast_object_list(refused, src=0, device=process.device)
        if refused[0]:
            raise UserError(refused[0])
        yield
