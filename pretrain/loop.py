"""The training loop: verbs on objects built earlier. Everything periodic is an event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from megatron_hyena.engine.engine import Engine, Sequences, StepResult


class HostBatch(Protocol):
    """A micro-batch that is still on the host."""

    def to(self, device: torch.device) -> Sequences:
        """The same on a device."""
        ...


class Event(Protocol):
    """Something that happens between steps."""

    def after_step(self, step: int, result: StepResult) -> bool:
        """Called after optimizer step `step` (from 1) on every rank; True stops the run."""
        ...

    def at_end(self, step: int, stopped: bool) -> None:
        """Called once after the last step, on every rank; `stopped` if an event stopped the run."""
        ...


def train(
    engine: Engine, batches: Iterable[tuple[int, Sequence[HostBatch]]], events: Sequence[Event]
) -> None:
    """Run the steps of `batches` until they end or an event stops the run."""
    stopped = False
    for _, micro_batches in batches:
        result = engine.train_step([batch.to(engine.device) for batch in micro_batches])
        stopped = any([event.after_step(engine.step, result) for event in events])
        if stopped:
            break
    for event in events:
        event.at_end(engine.step, stopped)
