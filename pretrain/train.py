"""Pretrain a model.

    torchrun --nproc-per-node N -m pretrain.train configs/run/X.yaml section.key=value ...
    python -m pretrain.train configs/run/X.yaml --dry-run

Resumes by itself from the newest checkpoint of the run. A run stopped by SIGTERM, SIGUSR1 or Ctrl-C
saves after the current step and exits with status 85; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_hyena.errors import UserError
from megatron_hyena.runtime.parent import end_with_parent
from pretrain.signals import UNFINISHED_STATUS, StopRequest

if TYPE_CHECKING:
    from megatron_hyena.config import Config
    from megatron_hyena.runtime.process import Process


def main(argv: list[str] | None = None) -> int:
    """Train (or describe) one run; 0 done, 85 stopped and saved, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="pretrain.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="describe the run, train nothing")
    arguments = parser.parse_intermixed_args(argv)
    from megatron_hyena.config import load_config

    stop = StopRequest()
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.dry_run:
            from pretrain.dry_run import describe

            print(describe(config, int(os.environ.get("WORLD_SIZE", "1"))))
            return 0
        if "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent()
        return train_run(config, stop.install())
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2


def train_run(config: Config, stop: StopRequest) -> int:
    """Join the ranks, build the run, train it, leave."""
    from megatron_hyena.config import check_layout
    from megatron_hyena.runtime.console import quiet_libraries
    from megatron_hyena.runtime.process import (
        start_process,
        stop_process,
        world_size_from_environment,
    )

    check_layout(config, world_size_from_environment())
    quiet_libraries()
    process = start_process()
    try:
        return _train(config, process, stop)
    finally:
        stop_process()


def _train(config: Config, process: Process, stop: StopRequest) -> int:
    from megatron_hyena.config import save_config
    from megatron_hyena.engine.saving import resume
    from megatron_hyena.observe.metrics import MetricsLog
    from megatron_hyena.observe.profiler import Throughput
    from megatron_hyena.observe.progress import write_line
    from pretrain import build, events, loop

    stream = build.open_stream(config)
    folder = build.run_folder(config)
    with build.run_lock(folder, process):
        engine = build.build_engine(config, process)
        validation_batches = build.validation_batches(config, engine.mesh)
        resumed = resume(engine)
        if process.is_main:
            save_config(config, folder / "config.yaml")
            write_line(f"resuming from {resumed}" if resumed else f"new run in {folder}")
        meter, start = Throughput(), engine.step
        if start >= config.train.steps:
            if process.is_main:
                write_line(f"nothing to do: all {config.train.steps} steps are done")
            return 0
        with (
            MetricsLog(
                folder, total_steps=config.train.steps, resume_step=start, enabled=process.is_main
            ) as log,
            build.training_batches(stream, config, engine.mesh, start) as batches,
        ):
            stopping = events.Stopping(config, engine, lambda: stop.asked)
            periodic: list[loop.Event] = [
                events.Logging(config, log, meter, start, process.is_main)
            ]
            validation = None
            if validation_batches is not None:
                validation = events.Validation(config, engine, validation_batches, log, meter)
                periodic.append(validation)
            loop.train(engine, batches, [*periodic, stopping, events.Saving(config, engine, meter)])
        if stopping.interrupted:
            if process.is_main:
                write_line(f"stopped after step {engine.step}, saved; the same command goes on")
            return UNFINISHED_STATUS
        if process.is_main and engine.step == config.train.steps:
            valid_loss = None if validation is None else validation.loss
            write_summary(config, folder, engine.step, valid_loss, meter.overall())
    return 0


def write_summary(
    config: Config, folder: Path, step: int, valid_loss: float | None, speed: float
) -> None:
    """Write `summary.json`, the final figures of a finished run."""
    from megatron_hyena.model.count import meta_model
    from megatron_hyena.observe.metrics import bits_per_base, read_metrics
    from megatron_hyena.observe.profiler import peak_memory_gb

    records = read_metrics(folder / "metrics.jsonl")
    summary = {
        "steps": step,
        "train_loss": records[-1]["loss"] if records else None,
        "valid_loss": valid_loss,
        "valid_bits_per_base": None if valid_loss is None else bits_per_base(valid_loss),
        "tokens_per_second": speed,
        "peak_memory_gb": peak_memory_gb(),
        "parameters": sum(p.numel() for p in meta_model(config.model).parameters()),
        "layout": {
            "tensor": config.parallel.tensor,
            "sequence": config.parallel.sequence,
            "context": config.parallel.context,
            "world_size": int(os.environ.get("WORLD_SIZE", "1")),
            "zero_stage": config.parallel.zero_stage,
            "recompute": config.parallel.recompute,
        },
    }
    temporary = folder / ".summary.json"
    temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "summary.json")


if __name__ == "__main__":
    sys.exit(main())
