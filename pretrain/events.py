"""What happens between steps: logging, validation, stopping, saving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_hyena.config import Config, length_schedule
from megatron_hyena.config.finetune import FinetuneConfig
from megatron_hyena.data.batch import Batch
from megatron_hyena.engine.engine import Engine, StepResult
from megatron_hyena.engine.saving import save_checkpoint
from megatron_hyena.layers.merging.keeping import named_figures
from megatron_hyena.observe.metrics import MetricsLog, bits_per_base
from megatron_hyena.observe.profiler import Throughput
from megatron_hyena.observe.progress import progress, write_line
from megatron_hyena.parallel.traffic import Direction


class StepLog:
    """A progress bar, and a line every `log.every` steps: `figures`."""

    def __init__(
        self,
        title: str,
        config: Config | FinetuneConfig,
        log: MetricsLog,
        meter: Throughput,
        start: int,
        main: bool,
    ) -> None:
        self.every, self.log, self.meter = config.log.every, log, meter
        total = config.train.steps
        self.bar = progress(
            description=title, total=total, unit="step", initial=start, enabled=main
        )

    def after_step(self, step: int, result: StepResult) -> bool:
        """Count the step; log it when it is due."""
        self.meter.step(result.tokens)
        self.bar.update(1)
        if step % self.every == 0:
            self.log.log(step, self.figures(step, result))
        return False

    def figures(self, step: int, result: StepResult) -> dict[str, Any]:
        """What is logged of a step."""
        return {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "tokens_per_second": self.meter.interval(),
            **merging_figures(result),
        }

    def at_end(self, step: int, stopped: bool) -> None:
        """Take the bar down."""
        self.bar.close()


class Logging(StepLog):
    """Of pretraining; says, too, when data begin to be shown again.

    Attributes:
        sent: bytes that this rank's layers sent in the last step: {kind: {direction: bytes}}.
    """

    def __init__(
        self,
        config: Config,
        log: MetricsLog,
        meter: Throughput,
        start: int,
        main: bool,
        passes: Callable[[int], float],
    ) -> None:
        """`passes`: how often the data was shown before a sequence of the run."""
        super().__init__("training", config, log, meter, start, main)
        self.passes, self.size, self.main = passes, config.train.global_batch_size, main
        self.lengths, self.steps = length_schedule(config), config.train.steps
        self.sent: dict[str, dict[Direction, int]] = {}

    def after_step(self, step: int, result: StepResult) -> bool:
        """Count the step; log it when it is due."""
        self.sent = result.sent
        epochs, before = (int(self.passes(n * self.size)) for n in (step, step - 1))
        if self.main and epochs > before and step < self.steps:
            write_line(f"step {step}: data was shown {epochs} x; its next epoch begins")
        return super().after_step(step, result)

    def figures(self, step: int, result: StepResult) -> dict[str, Any]:
        """See `StepLog`."""
        return super().figures(step, result) | {
            "bits_per_base": bits_per_base(result.loss),
            "tokens": step * result.tokens,
            "epochs": self.passes(step * self.size),
            "sequence_length": self.lengths.at(step - 1),
            "sent_bytes": sum(sum(kind.values()) for kind in result.sent.values()),
        }


def merging_figures(result: StepResult) -> dict[str, float]:
    """`ratio_loss`, and `merge/0/kept` and so on of each merged stage; nothing without stages."""
    if not result.merging:
        return {}
    return {"ratio_loss": result.ratio_loss, **named_figures(result.merging)}


class Validation:
    """The loss on held-out windows, if any, every `train.valid_every` steps and at the end."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        batches: Callable[[], list[Batch]] | None,
        log: MetricsLog,
        meter: Throughput,
    ) -> None:
        self.every, self.engine, self.batches = config.train.valid_every, engine, batches
        self.log, self.meter, self.last_step = log, meter, -1
        self.loss: float | None = None

    def after_step(self, step: int, result: StepResult) -> bool:
        """Validate when it is due."""
        if self.batches and self.every and step % self.every == 0:
            self._validate(self.batches(), step)
        return False

    def at_end(self, step: int, stopped: bool) -> None:
        """Validate at the end of the schedule; a stopped run has no time for it."""
        if self.batches and step != self.last_step and not stopped:
            self._validate(self.batches(), step)

    def _validate(self, batches: list[Batch], step: int) -> None:
        with self.meter.paused():
            device = self.engine.device
            nats, weight = self.engine.evaluate([b.to(device) for b in batches])
        self.last_step = step
        if weight == 0:  # nothing but unknown bases was held out
            return
        self.loss = nats / weight
        values = {"valid_loss": self.loss, "valid_bits_per_base": bits_per_base(self.loss)}
        self.log.log_validation(step, values)


class Stopping:
    """Stops all ranks together: on a signal to any of them, or after `train.stop_after`."""

    def __init__(self, config: Config, engine: Engine, asked: Callable[[], bool]) -> None:
        self.stop_after, self.steps = config.train.stop_after, config.train.steps
        self.engine, self.asked, self.interrupted = engine, asked, False

    def after_step(self, step: int, result: StepResult) -> bool:
        """Agree with the other ranks."""
        self.interrupted = self.engine.any_rank(self.asked()) and step < self.steps
        return self.interrupted or step == self.stop_after

    def at_end(self, step: int, stopped: bool) -> None:
        """Nothing is left to do."""


class Saving:
    """Checkpoints every `checkpoint.every` steps and at the end."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        meter: Throughput,
        data: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.data = data
        self.every, self.engine, self.meter = config.checkpoint.every, engine, meter
        self.folder = Path(config.run.output_dir) / "checkpoints"
        self.saved_step = engine.step

    def after_step(self, step: int, result: StepResult) -> bool:
        """Save when it is due."""
        if self.every and step % self.every == 0:
            self._save(step)
        return False

    def at_end(self, step: int, stopped: bool) -> None:
        """Save, unless just done."""
        if step != self.saved_step:
            self._save(step)

    def _save(self, step: int) -> None:
        with self.meter.paused():
            save_checkpoint(self.engine, self.folder, self.data)
        self.saved_step = step
