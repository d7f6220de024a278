"""A trained head of `model.heads`, as a Hugging Face folder needs to know it.

best/tasks.json           of a fine-tuned folder: kind, options and classes of each task
best/heads.safetensors    their heads' tensors, as TASK.NAME
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.model.heads import (
    RegressionHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
)

TASKS, HEADS = "tasks.json", "heads.safetensors"


@dataclass(frozen=True)
class TrainedHead:
    """A head's weights, and what its constructor was given.

    Attributes:
        problem_type: as in transformers: `regression` or `single_label_classification`.
        per_byte: whether each byte has a label.
        labels: names of the classes, or of the numbers.
        options: fields of the exported configuration; see `HEAD_DEFAULTS` there.
        tensors: the head's state, by name.
    """

    problem_type: str
    per_byte: bool
    labels: tuple[str, ...]
    options: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, head: TaskHead, labels: Sequence[str] = ()) -> TrainedHead:
        """That of a head, with names for its labels (`LABEL_0` and so on by default).

        Raises:
            UserError: another number of names than the head has labels; a head of another class.
        """
        regression = isinstance(head, RegressionHead)
        options: dict[str, Any] = {"classifier_dropout": head.dropout.p}
        if isinstance(head, RegressionHead):
            last = head.output
            options |= {
                "regression_loss": head.kind,
                "regression_delta": head.delta,
                "target_mean": head.target_mean,
                "target_std": head.target_std,
            }
        elif isinstance(head, SequenceClassificationHead | TokenClassificationHead):
            last = head.classifier
        else:
            raise UserError(f"{type(head).__name__} is no head that transformers could open")
        if not isinstance(head, TokenClassificationHead):
            options["classifier_pooling"] = head.pool.kind
        count = len(last.bias)
        names = tuple(labels) or tuple(f"LABEL_{i}" for i in range(count))
        if len(names) != count:
            raise UserError(f"{len(names)} names of labels for a head of {count}; name each")
        problem = "regression" if regression else "single_label_classification"
        state = {name: tensor.detach() for name, tensor in head.state_dict().items()}
        per_byte = isinstance(head, TokenClassificationHead)
        return cls(problem, per_byte, names, options, state)

    @classmethod
    def described(cls, task: Mapping[str, Any], tensors: dict[str, Tensor]) -> TrainedHead:
        """That of a task of a fine-tuned folder, with its tensors."""
        regression, per_byte = task["kind"] == "regression", task["kind"] == "token_classification"
        options = {"classifier_dropout": task["dropout"]}
        if not per_byte:
            options["classifier_pooling"] = task["pooling"]
        if regression:
            names = {"regression_loss": "loss", "regression_delta": "delta"}
            names |= {name: name for name in ("target_mean", "target_std")}
            options |= {name: task[key] for name, key in names.items()}
        count = task["output_dim" if regression else "num_classes"]
        labels = tuple(map(str, task["classes"])) if task["classes"] and not regression else ()
        labels = labels or tuple(f"LABEL_{i}" for i in range(count))
        problem = "regression" if regression else "single_label_classification"
        return cls(problem, per_byte, labels, options, tensors)

    def fields(self) -> dict[str, Any]:
        """What `config.json` says about it."""
        return self.options | {
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: i for i, name in enumerate(self.labels)},
        }


def read_head(folder: Path, name: str = "") -> TrainedHead | None:
    """A head of a fine-tuned folder: `name`, or its only one; None of another folder, or `none`.

    Raises:
        UserError: there is no such head, several and no name, or a file is damaged.
    """
    path = folder / TASKS
    kept = path.is_file() or (folder / HEADS).is_file()
    if name == "none" or (not kept and not name):
        return None
    if not path.is_file():
        raise UserError(
            f"{folder}: no {TASKS} says what its heads are; give a fine-tuned folder, or leave "
            "them out by --head none"
        )
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        known = ", ".join(tasks)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a description of tasks ({error}); copy it again") from error
    if not name and len(tasks) != 1:
        raise UserError(f"{folder} has the heads {known}; name one by --head, or none")
    name = name or next(iter(tasks))
    if name not in tasks:
        raise UserError(f"{folder} has no head {name!r}; it has {known}")
    try:
        tensors = load_file(folder / HEADS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / HEADS}: damaged or not there ({error}); copy it") from error
    own = {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}
    try:
        return TrainedHead.described(tasks[name], own)
    except KeyError as error:
        raise UserError(f"{path}: task {name!r} has no {error}; copy it again") from error
