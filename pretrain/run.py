"""One run on one rank: build, resume, train, sum up. The one place where all rooms meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_hyena.config import Config, exchange_of, save_config
from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.engine.engine import Engine
from megatron_hyena.engine.saving import resume
from megatron_hyena.errors import UserError
from megatron_hyena.model.count import meta_model
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.observe.metrics import METRICS_FILE, MetricsLog, bits_per_base, read_metrics
from megatron_hyena.observe.profiler import Throughput
from megatron_hyena.observe.progress import write_line
from megatron_hyena.parallel.mesh import build_mesh
from megatron_hyena.parallel.provider import MegatronProvider, sum_partial_gradients
from megatron_hyena.runtime.lock import only_process_in
from megatron_hyena.runtime.process import Process
from pretrain.data import Data, training_batches, validation_batches
from pretrain.events import Logging, Saving, Stopping, Validation
from pretrain.loop import train
from pretrain.signals import UNFINISHED_STATUS, StopRequest
from pretrain.summary import write_summary


def run(config: Config, process: Process, data: Data, stop: StopRequest) -> int:
    """Train `config` on this rank; returns the exit status."""
    folder = Path(config.run.output_dir)
    with only_run_in(folder, process):
        engine = build_engine(config, process)
        resumed = resume(engine)
        start, steps = engine.step, config.train.steps
        if process.is_main:
            save_config(config, folder / "config.yaml")
            write_line(f"resuming from {resumed}" if resumed else f"new run in {folder}")
            for line in data.train.describe().splitlines():
                write_line(f"data: {line}")
        meter, main = Throughput(), process.is_main
        with (
            MetricsLog(folder, total_steps=steps, resume_step=start, enabled=main) as log,
            training_batches(data.train, config, engine.mesh, start) as batches,
        ):
            held_out = validation_batches(data.valid, config, engine.mesh)
            validation = Validation(config, engine, held_out, log, meter)
            stopping = Stopping(config, engine, lambda: stop.asked)
            logging = Logging(config, log, meter, start, main, data.train.passes)
            saving = Saving(config, engine, meter, [asdict(one) for one in data.train.origins])
            train(engine, batches, [logging, validation, stopping, saving])
        corrupt = _all_corrupt(data.corrupt)
        if main:
            figures = {
                "valid_loss": validation.loss,
                "tokens_per_second": meter.overall(),
                "sent_bytes_per_step": logging.sent,
                **corrupt,
            }
            _conclude(config, folder, engine.step, start, figures)
    return UNFINISHED_STATUS if stopping.interrupted else 0


def build_engine(config: Config, process: Process) -> Engine:
    """The model of this rank under DeepSpeed; weights from `run.seed`."""
    mesh = build_mesh(config.parallel.tensor, config.parallel.context, process.timeout)
    exchanges = {sign: exchange_of(config, sign) for sign in config.model.signs}
    provider = MegatronProvider(mesh, config.parallel.sequence, exchanges)
    recompute = config.parallel.recompute
    model = HyenaGLT(config.model, provider, seed=config.run.seed, recompute=recompute)
    sum_partial_gradients(model, provider)
    return Engine(model, config, mesh, process.device)


@contextmanager
def only_run_in(folder: Path, process: Process) -> Iterator[None]:
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


def _conclude(config: Config, folder: Path, step: int, start: int, figures: dict[str, Any]) -> None:
    """Say how the run ended; write `summary.json` if it went to its end just now."""
    steps = config.train.steps
    if step < steps:
        write_line(f"stopped after step {step} of {steps}, saved; the same command goes on")
    elif start == steps:
        write_line(f"nothing to do: all {steps} steps are done")
    else:
        _write_summary(config, folder, figures)


def _all_corrupt(corrupt: CorruptShards) -> dict[str, Any]:
    """What all ranks met of corrupt shards; where shards are skipped, none share a window."""
    found = [corrupt.summary()] * dist.get_world_size()
    dist.all_gather_object(found, corrupt.summary())
    return {
        "corrupt_shards": sorted({name for one in found for name in one["corrupt_shards"]}),
        "skipped_windows": sum(one["skipped_windows"] for one in found),
        "skipped_bases": sum(one["skipped_bases"] for one in found),
    }


def _write_summary(config: Config, folder: Path, figures: dict[str, Any]) -> None:
    valid_loss = figures["valid_loss"]
    records = read_metrics(folder / METRICS_FILE)
    summary = {
        "steps": config.train.steps,
        "train_loss": records[-1]["loss"] if records else None,
        "valid_bits_per_base": None if valid_loss is None else bits_per_base(valid_loss),
        **figures,
        "parameters": sum(p.numel() for p in meta_model(config.model).parameters()),
    }
    write_summary(folder, config.parallel, summary)
