"""A trained head of `model.heads`, as a Hugging Face folder needs to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.model.heads import (
    RegressionHead,
    SequenceClassificationHead,
    TaskHead,
    TokenClassificationHead,
)


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

    def fields(self) -> dict[str, Any]:
        """What `config.json` says about it."""
        return self.options | {
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: i for i, name in enumerate(self.labels)},
        }
