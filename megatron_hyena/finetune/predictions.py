"""Predictions of a split: their figures, and the table that is written of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_hyena.finetune.examples import IGNORED, Example, TaskData
from megatron_hyena.finetune.metrics import class_metrics, number_metrics
from megatron_hyena.model.heads import TaskHead

Array = npt.NDArray[Any]
Predictions = Mapping[int, Array]
"""By number of the example what the head gives: [C], [n, C] or [k], fp32."""


def figures(task: TaskData, split: str, found: Predictions, head: TaskHead) -> dict[str, float]:
    """loss (unweighted, as the head's) and the metrics of the task's kind."""
    examples = task.split(split)
    told = [found[number] for number in range(len(examples))]
    labels = [example.label for example in examples]
    if task.kind == "token_classification":
        rows, wanted = np.concatenate(told), np.concatenate(labels).astype(np.int64)
    else:
        rows, wanted = np.stack(told), np.stack(labels)
    loss = head.loss(torch.from_numpy(rows), torch.from_numpy(wanted)).item()
    if task.kind == "regression":
        return {"loss": loss, **number_metrics(rows, wanted)}
    return {"loss": loss, **class_metrics(softmax(rows), wanted)}


def softmax(logits: Array) -> Array:
    """Probabilities [..., C], fp64."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    shares: Array = powers / powers.sum(-1, keepdims=True)
    return shares


def write_predictions(path: Path, task: TaskData, split: str, found: Predictions) -> None:
    """A table set apart by tabs, one row for each sequence, or each base of a task of bases."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write("\t".join(_header(task)) + "\n")
        for number, example in enumerate(task.split(split)):
            for row in _rows(task, example, found[number]):
                file.write("\t".join(row) + "\n")
    os.replace(temporary, path)


def _header(task: TaskData) -> list[str]:
    if task.kind == "regression":
        return ["name", *[f"{c}{end}" for c in task.classes for end in ("", "_predicted")]]
    place = ["position"] if task.kind == "token_classification" else []
    return ["name", *place, "label", "predicted", *[f"p_{name}" for name in task.classes]]


def _rows(task: TaskData, example: Example, told: Array) -> Iterator[list[str]]:
    if task.kind == "regression":
        pairs = zip(example.label.tolist(), told.tolist(), strict=True)
        yield [example.name, *[f"{value:.6g}" for pair in pairs for value in pair]]
        return
    tokens = task.kind == "token_classification"
    labels, shares = np.atleast_1d(example.label), softmax(np.atleast_2d(told))
    for position, (label, share) in enumerate(zip(labels.tolist(), shares, strict=True), start=1):
        known = "." if label == IGNORED else task.classes[label]
        best = task.classes[int(share.argmax())]
        place = [str(position)] if tokens else []
        yield [example.name, *place, known, best, *[f"{p:.6f}" for p in share]]
