"""A fine-tuned model on disk, complete or absent.

    best/config.json, model.safetensors    the trunk, as `HyenaGLT.save_pretrained` writes it
    best/heads.safetensors                 the heads
    best/tasks.json                        kinds and options of the heads, classes, step, metrics
    best/adapter/                          of LoRA: the additions, as peft reads them

The trunk has additions merged into it, so it is opened and converted as any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_hyena.data.atomic import atomic_folder
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.trunk import read_tensors
from megatron_hyena.model.folder import write_folder
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.task_model import TaskModel
from megatron_hyena.model.tasks import Task

HEADS, TASKS, FORMAT = "heads.safetensors", "tasks.json", 1


def write_tasks(
    folder: Path,
    model: TaskModel,
    trunk: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
    classes: Mapping[str, tuple[str, ...]],
    figures: Mapping[str, Any],
    more: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write the folder anew, whole.

    Args:
        model: gives the configuration and the tasks; its weights are not read.
        trunk, heads: whole tensors by name.
        classes: names of each task's classes, by number.
        figures: step and metrics.
        more: writes further files.
    """
    with atomic_folder(folder, marker=TASKS, overwrite=True) as partial:
        write_folder(partial, model.trunk.config, trunk)
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.items()}
        save_file(kept, partial / HEADS)
        described = {
            name: asdict(task) | {"classes": list(classes[name])}
            for name, task in model.tasks.items()
        }
        text = json.dumps({"format": FORMAT, "tasks": described, **figures}, indent=2)
        (partial / TASKS).write_text(text + "\n", encoding="utf-8")
        more(partial)


def read_tasks(folder: Path) -> dict[str, tuple[Task, tuple[str, ...]]]:
    """The tasks of a fine-tuned folder and their classes.

    Raises:
        UserError: no such folder, or it is damaged.
    """
    path = folder / TASKS
    if not path.is_file():
        raise UserError(
            f"{folder} has no heads ({TASKS}); give the folder best of a fine-tuning run, or "
            "finetune.heads=new"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = {}
        for name, task in values["tasks"].items():
            classes = tuple(task.pop("classes"))
            found[name] = Task(**task), classes
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a description of tasks ({error}); copy it again") from error
    return found


@torch.no_grad()
def load_heads(model: TaskModel, folder: Path) -> None:
    """Copy the heads of `model`'s tasks from a fine-tuned folder.

    Raises:
        UserError: it has no such head, or one of another kind or size.
    """
    saved, tensors = read_tasks(folder), read_tensors(folder / HEADS)
    for name, task in model.tasks.items():
        if name not in saved:
            raise UserError(
                f"{folder} has no head {name!r}, only {', '.join(saved)}; name the task so, or "
                "set finetune.heads=new"
            )
        if saved[name][0].kind != task.kind:
            raise UserError(
                f"{folder}: the head {name!r} is of {saved[name][0].kind}, and the task of "
                f"{task.kind}; set finetune.heads=new"
            )
        for key, parameter in model.head(name).named_parameters():
            found = tensors.get(f"{name}.{key}")
            if found is None or found.shape != parameter.shape:
                shape = None if found is None else list(found.shape)
                raise UserError(
                    f"{folder}: {name}.{key} has shape {shape}, and the task's head "
                    f"{list(parameter.shape)}; give the same classes and pooling, or set "
                    "finetune.heads=new"
                )
            parameter.copy_(found)


def load_task_model(folder: str | Path) -> tuple[TaskModel, dict[str, tuple[str, ...]]]:
    """A fine-tuned model, dense and in evaluation mode, and the classes of its tasks.

    `model.begin(task)` chooses the head; `model.predictions(ids)` uses it. Raises UserError.
    """
    folder = Path(folder)
    tasks = read_tasks(folder)
    model = TaskModel(
        HyenaGLT.from_pretrained(folder), {name: task for name, (task, _) in tasks.items()}
    )
    load_heads(model, folder)
    return model.eval(), {name: classes for name, (_, classes) in tasks.items()}
