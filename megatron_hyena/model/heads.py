"""Heads for tasks on top of the states per byte: `HyenaGLT(...)(ids).last_hidden_state`.

A head's `forward` gives predictions, its `loss` compares them with labels. Labels that are absent
(-100, or NaN for numbers) are not scored, and a batch without labels has the loss 0. Heads are
replicated over tensor ranks and read whole sequences: they come after the states are gathered.
B batch, L bytes, d channels, C classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import (
    Cut,
    constant,
    cut_parameter,
    drawn_seed,
    initialise,
    uniform,
)
from megatron_hyena.model.pooling import Pooling, readable

IGNORED = -100
"""A class that is not scored."""


class Affine(nn.Module):
    """x W^T + b, replicated; parameters carry their `Cut` as all of the model's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = cut_parameter(Cut((outputs, inputs), uniform(-bound, bound)), 1)
        self.bias = cut_parameter(Cut((outputs,), constant(0.0), role="vector"), 1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], in the dtype of the weights."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class TaskHead(nn.Module):
    """Base of the heads: `forward(hidden_states, attention_mask)` and `loss(predictions, labels)`.

    Attributes:
        gaussian: the loss is a squared error, which uncertainty weights treat by its own formula.
    """

    gaussian = False

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.d_model, self.dropout = d_model, nn.Dropout(dropout)

    def check(self, hidden_states: Tensor) -> None:
        """Refuse states of another width (UserError, with both)."""
        if hidden_states.shape[-1] != self.d_model:
            raise UserError(
                f"{type(self).__name__} reads {self.d_model} channels, not the "
                f"{hidden_states.shape[-1]} of states of shape {list(hidden_states.shape)}"
            )

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """hidden_states [B, L, d], attention_mask [B, L] (not 0: to be read) -> predictions."""
        raise NotImplementedError

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the labels that are there; 0 without any."""
        raise NotImplementedError

    def each_loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """The loss of each label, of their shape; 0 where one is absent."""
        return class_losses(predictions, labels)


class SequenceClassificationHead(TaskHead):
    """One class per sequence: pool, Linear, tanh, dropout, Linear.

    Args:
        d_model: channels d.
        num_classes: C.
        dropout: before the last Linear.
        pooling: see `model.pooling`.
    """

    def __init__(
        self, d_model: int, num_classes: int, dropout: float = 0.1, pooling: str = "mean"
    ) -> None:
        super().__init__(d_model, dropout)
        _positive(num_classes=num_classes, d_model=d_model)
        self.pool = Pooling(d_model, pooling)
        self.pooler = Affine(d_model, d_model)
        self.classifier = Affine(d_model, num_classes)
        initialise(self, drawn_seed(), rank=0, size=1)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """-> logits [B, C]."""
        self.check(hidden_states)
        pooled = torch.tanh(self.pooler(self.pool(hidden_states, attention_mask)))
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy in nats of logits [B, C] and classes [B]; -100 is not scored."""
        return classification_loss(predictions, labels)


class TokenClassificationHead(TaskHead):
    """One class per byte: dropout, Linear."""

    def __init__(self, d_model: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__(d_model, dropout)
        _positive(num_classes=num_classes, d_model=d_model)
        self.classifier = Affine(d_model, num_classes)
        initialise(self, drawn_seed(), rank=0, size=1)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """-> logits [B, L, C], masked or not: bytes that do not count have the label -100."""
        self.check(hidden_states)
        readable(hidden_states, attention_mask)
        logits: Tensor = self.classifier(self.dropout(hidden_states))
        return logits

    def loss(self, predictions: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
        """Cross-entropy in nats of logits [B, L, C] and classes [B, L], over scored bytes."""
        return classification_loss(predictions, labels, ignore_index)


class RegressionHead(TaskHead):
    """Numbers of a sequence: pool, Linear to d / 2, ReLU, dropout, Linear.

    Predictions are in the targets' own unit; `poisson` predicts a rate, at least 0. NaN targets are
    not scored.

    Args:
        d_model: channels d.
        output_dim: numbers per sequence.
        dropout: before the last Linear.
        loss: `mse`, `huber` (quadratic up to `delta` standard units) or `poisson` (counts).
        pooling: see `model.pooling`.
        target_mean, target_std: of the training targets, for `mse` and `huber`: the layers work,
            and errors are measured, in units of them.
    """

    def __init__(
        self,
        d_model: int,
        output_dim: int = 1,
        dropout: float = 0.1,
        loss: str = "mse",
        pooling: str = "mean",
        *,
        delta: float = 1.0,
        target_mean: float = 0.0,
        target_std: float = 1.0,
    ) -> None:
        super().__init__(d_model, dropout)
        _positive(output_dim=output_dim, d_model=d_model)
        self.kind, self.delta = loss, delta
        self.target_mean, self.target_std = target_mean, target_std
        self._check_choices()
        self.gaussian = loss == "mse"
        self.pool = Pooling(d_model, pooling)
        self.inner = Affine(d_model, max(1, d_model // 2))
        self.output = Affine(max(1, d_model // 2), output_dim)
        initialise(self, drawn_seed(), rank=0, size=1)

    def _check_choices(self) -> None:
        if self.kind not in ("mse", "huber", "poisson"):
            raise UserError(f"loss={self.kind!r} is unknown; use mse, huber or poisson")
        if not (self.target_std > 0 and self.delta > 0):
            raise UserError(
                f"target_std={self.target_std} and delta={self.delta} must be greater than 0"
            )
        if self.kind == "poisson" and (self.target_mean, self.target_std) != (0.0, 1.0):
            raise UserError(
                "counts are not rescaled: leave target_mean and target_std out with loss='poisson'"
            )

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """-> predictions [B, output_dim]."""
        self.check(hidden_states)
        inner = torch.relu(self.inner(self.pool(hidden_states, attention_mask)))
        raw = self.output(self.dropout(inner))
        if self.kind == "poisson":
            return F.softplus(raw)
        return raw * self.target_std + self.target_mean

    def loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """Mean over the targets [B, output_dim] (or [B], for one) that are not NaN.

        `mse`: squared error; `huber`: that up to `delta`, then linear; both in `target_std`.
        `poisson`: -log P(target) in nats under the predicted rate, never negative.

        Raises:
            UserError: another shape; a negative count.
        """
        given = ~labels.isnan()
        return self.each_loss(predictions, labels).sum() / given.sum().clamp(min=1)

    def each_loss(self, predictions: Tensor, labels: Tensor) -> Tensor:
        """See `TaskHead.each_loss`; errors as `loss`."""
        if labels.dim() == 1 and predictions.shape[1:] == (1,):
            labels = labels[:, None]
        if predictions.shape != labels.shape:
            raise UserError(
                f"targets of shape {list(labels.shape)} do not fit predictions of shape "
                f"{list(predictions.shape)}"
            )
        given = ~labels.isnan()
        target = torch.where(given, labels, 0.0).to(predictions.dtype)
        if self.kind == "poisson":
            if bool((target < 0).any()):
                raise UserError(f"count {float(target.min())} is negative; use loss='mse'")
            each = poisson_loss(predictions, target)
        else:
            each = self._error((predictions - target) / self.target_std)
        return torch.where(given, each, 0.0)

    def _error(self, standard: Tensor) -> Tensor:
        if self.kind == "mse":
            return standard * standard
        zero = torch.zeros_like(standard)
        return F.huber_loss(standard, zero, reduction="none", delta=self.delta)


def poisson_loss(rate: Tensor, count: Tensor) -> Tensor:
    """-log of the Poisson probability of `count` under `rate`, in nats, element by element."""
    smallest = torch.finfo(rate.dtype).tiny
    return rate - torch.xlogy(count, rate.clamp(min=smallest)) + torch.lgamma(count + 1)


def classification_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Mean cross-entropy in nats of logits [..., C] and classes [...], `ignore_index` left out.

    0, not NaN, where every label is left out. Errors as `class_losses`.
    """
    each = class_losses(logits, labels, ignore_index)
    return each.sum() / (labels != ignore_index).sum().clamp(min=1)


def class_losses(logits: Tensor, labels: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """Cross-entropy in nats of each of the classes [...], 0 for `ignore_index`; logits [..., C].

    Raises:
        UserError: labels of another shape, or a class the head does not have.
    """
    if labels.shape != logits.shape[:-1]:
        raise UserError(
            f"labels of shape {list(labels.shape)} do not fit logits of shape "
            f"{list(logits.shape)}; give one class for each"
        )
    scored = labels != ignore_index
    classes = logits.shape[-1]
    if labels.device.type == "cpu" and bool((scored & ((labels < 0) | (labels >= classes))).any()):
        wrong = labels[scored & ((labels < 0) | (labels >= classes))]
        raise UserError(
            f"label {int(wrong[0])} is none of the classes 0 to {classes - 1}; use {ignore_index} "
            "for what is not to be scored"
        )
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nll = F.cross_entropy(
        wide.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="none"
    )
    return nll.view_as(labels)


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"{name}={value} must be 1 or more")
