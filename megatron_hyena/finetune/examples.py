"""Labelled sequences of one task, in three splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import Bases

SPLITS = ("train", "valid", "test")
IGNORED = -100
"""Class of a base without a label."""
Labels = npt.NDArray[Any]
"""int16 [n] classes of bases, int64 [] the class, or float32 [k] numbers of a sequence."""


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence, uint8 [n], and its label."""

    name: str
    bases: Bases
    label: Labels


@dataclass(frozen=True)
class TaskData:
    """What a task is trained, validated and tested on.

    Attributes:
        name, kind: of the task.
        classes: names of the classes, by number; of numbers, names of the columns.
        class_weights: of the loss, one for each class.
        mean, std: of the training targets.
        swaps: classes that change places on the other strand.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    train: Sequence[Example]
    valid: Sequence[Example] = ()
    test: Sequence[Example] = ()
    class_weights: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    swaps: dict[int, int] = field(default_factory=dict)

    def split(self, name: str) -> Sequence[Example]:
        """The examples of train, valid or test."""
        found: Sequence[Example] = getattr(self, name)
        return found

    def describe(self) -> str:
        """One line: how many examples and of which classes."""
        counts = ", ".join(f"{len(self.split(s)):,} {s}" for s in SPLITS)
        if self.kind == "regression":
            return f"task {self.name}: {counts}; mean {self.mean:.4g}, deviation {self.std:.4g}"
        shares = class_counts(self.train, len(self.classes))
        named = [f"{c} {n / shares.sum():.1%}" for c, n in zip(self.classes, shares, strict=True)]
        return f"task {self.name}: {counts}; in training {', '.join(named)}"


def class_counts(examples: Sequence[Example], classes: int) -> npt.NDArray[np.int64]:
    """How often each class is a label, int64 [classes]."""
    total = np.zeros(classes, dtype=np.int64)
    for example in examples:
        labels = np.atleast_1d(example.label)
        total += np.bincount(labels[labels != IGNORED].astype(np.int64), minlength=classes)
    return total
