"""Micro-batches of labelled sequences: which examples a step shows, the same on every layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from megatron_hyena.data.alphabet import PAD, reverse_complement
from megatron_hyena.data.order import Permutation, draw_key, words
from megatron_hyena.finetune.examples import IGNORED, Example, TaskData


@dataclass(frozen=True)
class LabelledBatch:
    """B sequences of a task; what the engine takes.

    Attributes:
        input_ids: int64 [B, L], PAD behind the end.
        targets: int64 [B] or [B, L], or float32 [B, k].
        weights: of the labels, of their shape, float32.
        examples: numbers of the examples in their split.
    """

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    examples: tuple[int, ...] = ()
    documents: Tensor | None = None
    tracks: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> LabelledBatch:
        """The same on a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
        )


def make_batch(
    task: TaskData,
    examples: Sequence[Example],
    numbers: Sequence[int] = (),
    multiple: int = 1,
    *,
    training: bool = False,
) -> LabelledBatch:
    """Stack examples; their length is a multiple of `multiple`. In training, classes weigh."""
    longest = max(len(example.bases) for example in examples)
    shape = len(examples), -(-longest // multiple) * multiple
    ids = np.full(shape, PAD, dtype=np.int64)
    for row, example in enumerate(examples):
        ids[row, : len(example.bases)] = example.bases
    if task.kind == "regression":
        numbers_BK = torch.from_numpy(np.stack([example.label for example in examples]))
        given = (~numbers_BK.isnan()).float()
        return LabelledBatch(torch.from_numpy(ids), numbers_BK, given, tuple(numbers))
    if task.kind == "token_classification":
        labels = np.full(shape, IGNORED, dtype=np.int64)
        for row, example in enumerate(examples):
            labels[row, : len(example.label)] = example.label
    else:
        labels = np.array([example.label for example in examples], dtype=np.int64)
    scale = np.array(task.class_weights if training else [1.0] * len(task.classes), np.float32)
    weights = np.where(labels == IGNORED, np.float32(0), scale[labels.clip(min=0)])
    return LabelledBatch(
        torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(weights), tuple(numbers)
    )


@dataclass(frozen=True)
class TrainingExamples:
    """The order in which a task's examples are shown: every one once an epoch.

    Attributes:
        seed: a number of the run and the task.
        turns: show a strand drawn at random.
    """

    task: TaskData
    seed: int
    turns: bool = False

    def example(self, place: int) -> Example:
        """Number `place` of the endless stream."""
        epoch, within = divmod(place, len(self.task.train))
        order = _order(len(self.task.train), self.seed, epoch)
        example = self.task.train[int(order(np.array([within]))[0])]
        if not self.turns or int(words(draw_key(self.seed, 1), np.array([place]))[0]) & 1:
            return example
        return turned(example, self.task)

    def batches(self, first: int, size: int, pieces: int, multiple: int = 1) -> list[LabelledBatch]:
        """`pieces` micro-batches of `size` from place `first` on."""
        starts = range(first, first + size * pieces, size)
        return [
            make_batch(
                self.task,
                [self.example(place) for place in range(start, start + size)],
                multiple=multiple,
                training=True,
            )
            for start in starts
        ]


@lru_cache(maxsize=64)
def _order(size: int, seed: int, epoch: int) -> Permutation:
    return Permutation(size, draw_key(seed, 0, epoch))


def turned(example: Example, task: TaskData) -> Example:
    """The other strand; labels of bases turn round, and classes of strands change places."""
    label = example.label
    if task.kind == "token_classification":
        table = {i: task.swaps.get(i, i) for i in range(len(task.classes))}
        label = label[::-1].copy()
        for old, new in table.items():
            label[example.label[::-1] == old] = new
    return Example(example.name, reverse_complement(example.bases), label)


def evaluation_batches(
    task: TaskData, split: str, size: int, rank: int, ranks: int, multiple: int = 1
) -> Iterator[LabelledBatch]:
    """This rank's micro-batches of a split; every rank has equally many.

    Examples are dealt out in turn; the first ones are shown again where some ranks lack one, so
    whoever gathers predictions must count each number once.
    """
    examples = task.split(split)
    total = -(-len(examples) // (size * ranks)) * size * ranks
    for start in range(rank, total, size * ranks):
        numbers = [(start + i * ranks) % len(examples) for i in range(size)]
        yield make_batch(task, [examples[n] for n in numbers], numbers, multiple)
