"""The parts of a fine-tuning run: its data, its model on this rank, its engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from megatron_hyena.config.finetune import FinetuneConfig, TaskSection, load_finetune, run_config
from megatron_hyena.errors import UserError
from megatron_hyena.yaml_sections import plain_values

if TYPE_CHECKING:
    from megatron_hyena.engine.engine import Engine
    from megatron_hyena.finetune.batches import LabelledBatch
    from megatron_hyena.finetune.examples import TaskData
    from megatron_hyena.finetune.lora import Lora
    from megatron_hyena.finetune.source import Source
    from megatron_hyena.model.task_model import TaskModel
    from megatron_hyena.model.tasks import Task
    from megatron_hyena.parallel.mesh import Mesh
    from megatron_hyena.runtime.process import Process


def read_tasks_of(config: FinetuneConfig, source: Source) -> dict[str, TaskData]:
    """The data of all tasks, by name; kept heads keep the order of their classes."""
    from megatron_hyena.finetune.folder import read_tasks
    from megatron_hyena.finetune.reading import read_task

    kept = read_tasks(source.folder) if config.finetune.heads == "keep" else {}
    found = {}
    for task in config.all_tasks:
        classes = kept[task.name][1] if task.name in kept else ()
        if classes and task.table and task.kind != "regression" and not task.classes:
            task = replace(task, classes=classes)
        data = read_task(task, config.data, source.config.vocab_size)
        if classes and task.kind != "regression" and data.classes != classes:
            raise UserError(
                f"{source.folder}: the head {task.name!r} tells {', '.join(classes)} apart, and "
                f"the task {', '.join(data.classes)}; give the same, or set finetune.heads=new"
            )
        found[task.name] = data
    return found


def check_same_run(config: FinetuneConfig) -> None:
    """Refuse to go on with a run of other tasks, data or method (UserError)."""
    path = Path(config.run.output_dir) / "config.yaml"
    begun = (path.parent / "checkpoints").is_dir() and path.is_file()
    if config.checkpoint.resume != "auto" or not begun:
        return
    saved, asked = plain_values(load_finetune(path)), plain_values(config)
    for section in ("finetune", "task", "tasks", "data"):
        if saved[section] != asked[section]:
            raise UserError(
                f"{path.parent}: begun with another section {section!r}, so it cannot go on; "
                "restore it, set checkpoint.resume=none, or choose another run.output_dir"
            )


@dataclass(frozen=True)
class Built:
    """One rank's part of a run; `lora` is None but for that method."""

    engine: Engine
    model: TaskModel
    lora: Lora | None
    multiple: int
    """Batches are padded to a multiple of so many bytes."""

    @property
    def mesh(self) -> Mesh:
        """The groups of ranks."""
        return self.engine.mesh


def build(
    config: FinetuneConfig, source: Source, tasks: Mapping[str, TaskData], process: Process
) -> Built:
    """The model of this rank, with its weights, under DeepSpeed."""
    from megatron_hyena.config import exchange_of
    from megatron_hyena.engine.engine import Engine
    from megatron_hyena.finetune.folder import load_heads
    from megatron_hyena.finetune.lora import Lora
    from megatron_hyena.finetune.trunk import load_trunk
    from megatron_hyena.model.hyena_glt import HyenaGLT
    from megatron_hyena.model.task_model import TaskModel
    from megatron_hyena.model.unfreezing import set_method
    from megatron_hyena.parallel.mesh import build_mesh
    from megatron_hyena.parallel.provider import MegatronProvider, sum_partial_gradients

    of_run, chosen, seed = run_config(config, source.config), config.finetune, config.run.seed
    mesh = build_mesh(config.parallel.tensor, config.parallel.context, process.timeout)
    exchanges = {sign: exchange_of(of_run, sign) for sign in of_run.model.signs}
    provider = MegatronProvider(mesh, config.parallel.sequence, exchanges)
    trunk = HyenaGLT(of_run.model, provider, seed=seed, recompute=config.parallel.recompute)
    if not chosen.random:
        load_trunk(trunk, source, mesh.tensor_rank, mesh.tensor_size)
    sum_partial_gradients(trunk, provider)
    heads = {task.name: head_of(task, tasks[task.name]) for task in config.all_tasks}
    model = TaskModel(trunk, heads, chosen.balance, seed)
    if chosen.heads == "keep":
        load_heads(model, source.folder)
    set_method(
        model,
        chosen.method,
        chosen.unfreeze_every,
        chosen.layer_decay,
        chosen.head_lr_factor,
    )
    lora = None
    if chosen.method == "lora":
        lora = Lora(trunk, chosen.lora_rank, chosen.lora_alpha, chosen.lora_targets, seed)
    rates: Literal["start", "keep", "still"] = "start" if chosen.random else "keep"
    if chosen.method in ("frozen", "lora"):
        rates = "still"
    engine = Engine(model, of_run, mesh, process.device, rates)
    padded = bool(trunk.stages) and not of_run.model.causal
    multiple = trunk.merging_multiple * provider.sequence_multiple if padded else 1
    return Built(engine, model, lora, multiple)


def head_of(task: TaskSection, data: TaskData) -> Task:
    """What the task's head is built from."""
    from megatron_hyena.model.tasks import Task

    return Task(
        kind=task.kind,
        num_classes=max(1, len(data.classes)),
        output_dim=len(data.classes) if task.kind == "regression" else 1,
        dropout=task.head.dropout,
        pooling=task.head.pooling,
        loss=task.head.loss,
        weight=task.weight,
        examples=len(data.train),
        delta=task.head.delta,
        target_mean=data.mean,
        target_std=data.std,
    )


def steps_of(
    config: FinetuneConfig, tasks: Mapping[str, TaskData], built: Built, start: int
) -> Iterator[tuple[int, list[LabelledBatch]]]:
    """(step, this data rank's micro-batches) from `start` on; each step is of one task.

    The task and its examples are functions of the seed and the step, so they are the same on any
    ranks and after a restart.
    """
    from megatron_hyena.data.order import draw_key
    from megatron_hyena.finetune.batches import TrainingExamples
    from megatron_hyena.model.tasks import task_of_step, task_probabilities

    seed, train, mesh = config.run.seed, config.train, built.mesh
    sizes = {name: len(task.train) for name, task in tasks.items()}
    probabilities = task_probabilities(sizes, config.finetune.temperature)
    streams = {
        name: TrainingExamples(task, draw_key(seed, number), config.data.reverse_complement)
        for number, (name, task) in enumerate(tasks.items())
    }
    shown = dict.fromkeys(tasks, 0)
    share = train.global_batch_size // mesh.data_size
    for step in range(train.steps):
        name = task_of_step(probabilities, step, seed)
        first = shown[name] + mesh.data_rank * share
        shown[name] += train.global_batch_size
        if step < start:
            continue
        built.model.begin(name, step, mesh.data_rank)
        size = train.micro_batch_size
        yield step, streams[name].batches(first, size, share // size, built.multiple)
