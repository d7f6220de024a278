"""One fine-tuning run on one rank: build, resume, train, test the best, sum up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from megatron_hyena.config.finetune import FinetuneConfig
from megatron_hyena.engine.saving import resume
from megatron_hyena.engine.state import set_weights, trained, whole_weights
from megatron_hyena.finetune.examples import TaskData
from megatron_hyena.finetune.folder import HEADS, write_tasks
from megatron_hyena.finetune.predictions import figures, write_predictions
from megatron_hyena.finetune.source import BEST, Source
from megatron_hyena.finetune.trunk import read_tensors
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.model.folder import WEIGHTS
from megatron_hyena.observe.metrics import METRICS_FILE, MetricsLog, read_metrics
from megatron_hyena.observe.profiler import Throughput
from megatron_hyena.observe.progress import write_line
from megatron_hyena.runtime.process import Process
from megatron_hyena.yaml_sections import plain_values
from pretrain.events import Saving, Stopping
from pretrain.finetune_build import Built, build, steps_of
from pretrain.finetune_events import TaskLogging, TaskValidation, named, predict
from pretrain.loop import train
from pretrain.run import only_run_in
from pretrain.signals import UNFINISHED_STATUS, StopRequest
from pretrain.summary import SUMMARY, write_summary

TRUNK, HEAD = "trunk.", "heads."


def run(
    config: FinetuneConfig,
    source: Source,
    tasks: Mapping[str, TaskData],
    process: Process,
    stop: StopRequest,
) -> int:
    """Fine-tune on this rank; returns the exit status."""
    folder, main = Path(config.run.output_dir), process.is_main
    with only_run_in(folder, process):
        built = build(config, source, tasks, process)
        engine = built.engine
        resumed = resume(engine)
        start = engine.step
        if main:
            save_finetune(config, folder / "config.yaml")
            write_line(f"resuming from {resumed}" if resumed else f"new run in {folder}")
            for task in tasks.values():
                write_line(task.describe())
        meter = Throughput()
        steps = config.train.steps
        with MetricsLog(folder, total_steps=steps, resume_step=start, enabled=main) as log:

            def keep(step: int, figures: Mapping[str, float]) -> None:
                save_best(built, folder / BEST, tasks, source, {"step": step, **figures})

            validation = TaskValidation(config, built, tasks, log, meter, keep, start)
            stopping = Stopping(engine.config, engine, lambda: stop.asked)
            saving = Saving(engine.config, engine, meter)
            logging = TaskLogging(config, built, log, meter, start)
            if not validation.exhausted:
                batches = steps_of(config, tasks, built, start)
                train(engine, batches, [logging, validation, stopping, saving])
        if start == engine.step and (folder / SUMMARY).exists() and not stopping.interrupted:
            if main:
                write_line(f"nothing to do: the run is done, see {folder / SUMMARY}")
            return 0
        if engine.step < steps and not validation.exhausted:
            if main:
                write_line(f"stopped after step {engine.step} of {steps}, saved; the same command "
                           "goes on")  # fmt: skip
            return UNFINISHED_STATUS if stopping.interrupted else 0
        _conclude(config, built, tasks, validation, meter)
    return 0


def save_finetune(config: FinetuneConfig, path: Path) -> None:
    """Write the configuration as YAML that `load_finetune` reads back to an equal one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(yaml.safe_dump(plain_values(config), sort_keys=False), encoding="utf-8")
    os.replace(temporary, path)


def save_best(
    built: Built,
    folder: Path,
    tasks: Mapping[str, TaskData],
    source: Source,
    figures: Mapping[str, Any],
) -> None:
    """Write the model as it is; all ranks call it."""
    main = dist.get_rank() == 0
    # All ranks gather, one parameter at a time; one keeps them.
    weights = {name: w.cpu() for name, w in whole_weights(built.engine) if main}
    if main:
        heads = {n.removeprefix(HEAD): w for n, w in weights.items() if n.startswith(HEAD)}
        trunk = {n.removeprefix(TRUNK): w for n, w in weights.items() if n.startswith(TRUNK)}
        lora = built.lora
        if lora is not None:
            trunk = lora.merged()
        trunk |= rate_state(built.model.trunk)
        classes = {name: task.classes for name, task in tasks.items()}

        def more(partial: Path) -> None:
            if lora is not None:
                lora.save(partial / "adapter", str(source.folder))

        write_tasks(folder, built.model, trunk, heads, classes, figures, more)
    dist.barrier()


def restore_best(built: Built, folder: Path) -> None:
    """Compute with the weights of the best checkpoint; all ranks call it."""
    trunk = read_tensors(folder / WEIGHTS)
    for name, buffer in rate_state(built.model.trunk).items():
        buffer.copy_(trunk.pop(name))
    if built.lora is not None:
        trunk = built.lora.restored(trunk)
    heads = read_tensors(folder / HEADS)
    named = {TRUNK + name: w for name, w in trunk.items()}
    set_weights(built.engine, (named | {HEAD + name: w for name, w in heads.items()}).items())


def _conclude(
    config: FinetuneConfig,
    built: Built,
    tasks: Mapping[str, TaskData],
    validation: TaskValidation,
    meter: Throughput,
) -> None:
    """Test the best checkpoint, write its predictions and `summary.json`."""
    folder, main = Path(config.run.output_dir), dist.get_rank() == 0
    restore_best(built, folder / BEST)
    tested: dict[str, float] = {}
    for name, task in tasks.items():
        if not task.test:
            continue
        found = predict(built, task, "test", config.train.micro_batch_size)
        if main:
            several = len(tasks) > 1
            own = figures(task, "test", found, built.model.head(name))
            tested |= {key.replace("valid_", "test_"): v
                       for key, v in named(own, name, several=several).items()}  # fmt: skip
            suffix = f".{name}" if several else ""
            write_predictions(folder / f"test_predictions{suffix}.tsv", task, "test", found)
    if main:
        _write_summary(config, built, validation, tested, meter)
        write_line(f"best after step {validation.best_step}: " + "  ".join(
            f"{key} {value:.4f}" for key, value in tested.items()))  # fmt: skip


def _write_summary(
    config: FinetuneConfig,
    built: Built,
    validation: TaskValidation,
    tested: Mapping[str, float],
    meter: Throughput,
) -> None:
    folder = Path(config.run.output_dir)
    records = read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
    cuts = {name: p.cut.shape for name, p in built.model.named_parameters()}  # type: ignore[attr-defined]
    summary = {
        "steps": built.engine.step,
        "stopped_early": validation.exhausted,
        "best_step": validation.best_step,
        "best_score": validation.best,
        "train_loss": records[-1]["loss"] if records else None,
        "test": dict(tested),
        "tokens_per_second": meter.overall(),
        "parameters": sum(_size(shape) for shape in cuts.values()),
        "trained_parameters": sum(_size(cuts[name]) for name in trained(built.engine)),
    }
    write_summary(folder, config.parallel, summary)


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
