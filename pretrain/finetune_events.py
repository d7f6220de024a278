"""What happens between the steps of fine-tuning: logging, and validation that keeps the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_hyena.config.finetune import METRICS, FinetuneConfig
from megatron_hyena.engine.engine import StepResult
from megatron_hyena.finetune.batches import evaluation_batches
from megatron_hyena.finetune.examples import TaskData
from megatron_hyena.finetune.metrics import better
from megatron_hyena.finetune.predictions import Predictions, figures
from megatron_hyena.observe.metrics import VALIDATION_FILE, MetricsLog, read_metrics
from megatron_hyena.observe.profiler import Throughput
from megatron_hyena.observe.progress import write_line
from pretrain.events import StepLog
from pretrain.finetune_build import Built

SCORE = "score"
"""What chooses the best, as it is logged."""


class TaskLogging(StepLog):
    """Of fine-tuning; of several tasks, each step's loss under its task's name, too."""

    def __init__(
        self, config: FinetuneConfig, built: Built, log: MetricsLog, meter: Throughput, start: int
    ) -> None:
        super().__init__("fine-tuning", config, log, meter, start, dist.get_rank() == 0)
        self.model = built.model

    def figures(self, step: int, result: StepResult) -> dict[str, Any]:
        """See `StepLog`."""
        named = {f"{self.model.task}/train_loss": result.loss} if len(self.model.tasks) > 1 else {}
        return super().figures(step, result) | named


class TaskValidation:
    """Metrics of the validation split every `train.valid_every` steps and at the end.

    Attributes:
        best, best_step: of the score that `finetune.metric` names; None before the first.
        exhausted: `finetune.patience` validations were no better.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        built: Built,
        tasks: Mapping[str, TaskData],
        log: MetricsLog,
        meter: Throughput,
        keep: Callable[[int, Mapping[str, float]], None],
        start: int,
    ) -> None:
        """`keep` saves the best: all ranks call it."""
        self.config, self.built, self.log, self.meter = config, built, log, meter
        self.tasks = {name: task for name, task in tasks.items() if task.valid}
        self.keep, self.last_step = keep, -1
        self.best: float | None = None
        self.best_step, self.waited = 0, 0
        self._recall(Path(config.run.output_dir) / VALIDATION_FILE, start)

    @property
    def exhausted(self) -> bool:
        """See the class."""
        return 0 < self.config.finetune.patience <= self.waited

    def after_step(self, step: int, result: StepResult) -> bool:
        """Validate when it is due; stop when nothing gets better."""
        every = self.config.train.valid_every
        if self.tasks and every and step % every == 0:
            self._validate(step)
        return self.exhausted

    def at_end(self, step: int, stopped: bool) -> None:
        """Validate at the end of the schedule; without validation data the last is the best."""
        if not stopped and step != self.last_step:
            self._validate(step)

    def _validate(self, step: int) -> None:
        self.last_step = step
        with self.meter.paused():
            values: dict[str, float] = {}
            for name, task in self.tasks.items():
                found = self._figures(name, task)
                values |= named(found, name, several=len(self.built.model.tasks) > 1)
                values |= {SCORE + name: found[self._metric(name)]}
            score = self._agreed(values)
            if self.tasks:
                shown = {key: v for key, v in values.items() if not key.startswith(SCORE)}
                self.log.log_validation(step, shown | {SCORE: score})
                if dist.get_rank() == 0:
                    write_line("  ".join(f"{key} {v:.4f}" for key, v in shown.items()))
            self._judge(step, score)
            if self.best_step == step:
                self.keep(step, {SCORE: score})

    def _figures(self, name: str, task: TaskData) -> dict[str, float]:
        found = predict(self.built, task, "valid", self.config.train.micro_batch_size)
        return figures(task, "valid", found, self.built.model.head(name))

    def _agreed(self, values: Mapping[str, float]) -> float:
        """The mean score over tasks, as rank 0 has it; NaN without validation data."""
        scores = [value for key, value in values.items() if key.startswith(SCORE)]
        score = [sum(scores) / len(scores) if scores else math.nan]
        dist.broadcast_object_list(score, src=0, device=self.built.engine.device)
        return score[0]

    def _metric(self, name: str) -> str:
        chosen = self.config.finetune.metric
        return chosen or METRICS[self.built.model.tasks[name].kind][0]

    def _judge(self, step: int, score: float) -> None:
        if self.best_step == 0 or better(score, self.best, self.config.finetune.metric):
            self.best, self.best_step, self.waited = score, step, 0
        else:
            self.waited += 1

    def _recall(self, path: Path, start: int) -> None:
        """What a run that goes on behind step `start` had found."""
        if path.exists() and start:
            for record in read_metrics(path):
                if record["step"] <= start:
                    self._judge(int(record["step"]), record[SCORE])
                    self.last_step = int(record["step"])


def named(found: Mapping[str, float], task: str, *, several: bool) -> dict[str, float]:
    """Figures under the names they are logged by: `valid_mcc`, or `TASK/mcc` among several."""
    return {f"{task}/{key}" if several else f"valid_{key}": value for key, value in found.items()}


def predict(built: Built, task: TaskData, split: str, size: int) -> Predictions:
    """What the model tells of a split, on every rank; collective."""
    mesh, model = built.mesh, built.model
    model.begin(task.name)
    own: dict[int, Any] = {}
    for batch in evaluation_batches(
        task, split, size, mesh.data_rank, mesh.data_size, built.multiple
    ):
        found = built.engine.predictions(batch.to(built.engine.device)).float().cpu().numpy()
        for row, number in enumerate(batch.examples):
            length = len(task.split(split)[number].bases)
            tokens = task.kind == "token_classification"
            own[number] = found[row, :length] if tokens else found[row]
    parts: list[dict[int, Any]] = [{} for _ in range(mesh.data_size)]
    dist.all_gather_object(parts, own, group=mesh.data)
    return {number: value for part in parts for number, value in part.items()}
