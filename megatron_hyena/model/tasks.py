"""Which task a step trains, and how the losses of several tasks become one."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from megatron_hyena.config.finetune import KINDS
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import Cut, constant, cut_parameter


@dataclass(frozen=True)
class Task:
    """One task of several.

    Attributes:
        kind: `classification` (a class per sequence), `token_classification` (a class per byte) or
            `regression` (numbers per sequence).
        num_classes: of the first two.
        output_dim: numbers of the third.
        dropout: inside the head.
        pooling: see `model.pooling`.
        loss: of regression: `mse`, `huber` or `poisson`.
        delta, target_mean, target_std: of regression; see `RegressionHead`.
        weight: fixed factor on the task's loss.
        examples: how many there are, for `task_of_step`.
    """

    kind: str
    num_classes: int = 2
    output_dim: int = 1
    dropout: float = 0.1
    pooling: str = "mean"
    loss: str = "mse"
    weight: float = 1.0
    examples: int = 1
    delta: float = 1.0
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"task kind {self.kind!r} is unknown; use {', '.join(KINDS)}")
        if not self.weight > 0 or self.examples < 1:
            raise UserError(
                f"task weight={self.weight} must be greater than 0 and examples={self.examples} "
                "1 or more"
            )


def task_probabilities(examples: Mapping[str, int], temperature: float = 1.0) -> dict[str, float]:
    """p_i proportional to examples_i^(1 / temperature): 1 by size, large values nearly evenly.

    Raises:
        UserError: no task, or a temperature that is not positive.
    """
    if not examples or not temperature > 0:
        raise UserError(
            f"sampling needs a task and a temperature above 0, not {len(examples)} tasks and "
            f"{temperature}"
        )
    most = max(examples.values())
    shares = {name: (count / most) ** (1 / temperature) for name, count in examples.items()}
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def task_of_step(probabilities: Mapping[str, float], step: int, seed: int = 0) -> str:
    """The task of a step: a pure function, so that every rank takes the same and a resumed run too.

    Drawn from SHA-256 of (seed, step).
    """
    digest = hashlib.sha256(f"{seed}:task:{step}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    place = bisect_right(list(accumulate(probabilities.values())), drawn)
    return list(probabilities)[min(place, len(probabilities) - 1)]


class UncertaintyWeights(nn.Module):
    """Weights that tasks learn from their own noise (Kendall, Gal and Cipolla, arXiv:1705.07115).

    With s = log sigma^2, a parameter per task: exp(-s) L / 2 + s / 2 for a squared error L,
    exp(-s) L + s / 2 for other losses. Without the s / 2 all s would grow for ever.

    Args:
        gaussian: whether each task's loss is a squared error, by name.
    """

    def __init__(self, gaussian: Mapping[str, bool]) -> None:
        super().__init__()
        self.gaussian = dict(gaussian)
        cut = Cut((len(gaussian),), constant(0.0), role="vector")
        self.log_variance = cut_parameter(cut, 1)
        with torch.no_grad():
            self.log_variance.zero_()

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Losses by task, any of them -> their sum, weighted."""
        names = list(self.gaussian)
        terms = []
        for name, loss in losses.items():
            s = self.log_variance[names.index(name)]
            terms.append(torch.exp(-s) * loss * (0.5 if self.gaussian[name] else 1.0) + s / 2)
        return torch.stack(terms).sum()


class FixedWeights(nn.Module):
    """The losses' sum with weights that stay as they are."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Losses by task, any of them -> their sum, weighted."""
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()


def loss_weights(
    balance: str, weights: Mapping[str, float], gaussian: Mapping[str, bool]
) -> FixedWeights | UncertaintyWeights:
    """What makes one loss of the tasks': `fixed` by `weights`, or `uncertainty`, by name.

    Raises:
        UserError: another `balance`.
    """
    if balance == "fixed":
        return FixedWeights(weights)
    if balance == "uncertainty":
        return UncertaintyWeights(gaussian)
    raise UserError(f"balance={balance!r} is unknown; use fixed or uncertainty")
