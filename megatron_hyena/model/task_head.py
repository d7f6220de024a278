"""The head that a task's description asks for."""

from __future__ import annotations

from megatron_hyena.model.heads import (
    RegressionHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
)
from megatron_hyena.model.tasks import Task


def task_head(task: Task, width: int) -> TaskHead:
    """A new head for states of `width` channels."""
    if task.kind == "regression":
        return RegressionHead(
            width,
            task.output_dim,
            task.dropout,
            task.loss,
            task.pooling,
            delta=task.delta,
            target_mean=task.target_mean,
            target_std=task.target_std,
        )
    if task.kind == "classification":
        return SequenceClassificationHead(width, task.num_classes, task.dropout, task.pooling)
    return TokenClassificationHead(width, task.num_classes, task.dropout)
