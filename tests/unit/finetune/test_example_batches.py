"""Which examples a step shows: once an epoch, the same however they are shared out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from megatron_hyena.finetune.batches import TrainingExamples, evaluation_batches, make_batch
from megatron_hyena.finetune.examples import Example, TaskData


def task_of(kind: str, count: int = 7) -> TaskData:
    examples = []
    for n in range(count):
        bases = np.frombuffer(b"ACGT" * 3, np.uint8)[: 3 + n]
        label = {
            "classification": np.array(n % 2),
            "token_classification": np.array([-100, *[n % 2] * (2 + n)], dtype=np.int16),
            "regression": np.array([n, np.nan], dtype=np.float32),
        }[kind]
        examples.append(Example(str(n), bases, label))
    weights = () if kind == "regression" else (1.0, 4.0)
    return TaskData("t", kind, ("a", "b"), examples, examples[:5], class_weights=weights)


def test_each_epoch_shows_each_example_once_in_another_order():
    stream = TrainingExamples(task_of("classification"), seed=3)
    epochs = [[stream.example(7 * e + i).name for i in range(7)] for e in range(4)]
    assert all(sorted(epoch) == list("0123456") for epoch in epochs)
    assert len({*map(tuple, epochs)}) > 1
    other = TrainingExamples(task_of("classification"), seed=4)
    assert [other.example(i).name for i in range(7)] != epochs[0]


def test_both_strands_are_drawn_alike_every_time():
    task = task_of("classification")
    streams = [TrainingExamples(task, seed=1, turns=True) for _ in range(2)]
    shown = [[s.example(i).bases.tobytes() for i in range(60)] for s in streams]
    assert shown[0] == shown[1]
    forward = sum(b.startswith(b"ACG") for b in shown[0])
    assert 15 < forward < 45


@pytest.mark.parametrize("kind", ["classification", "token_classification", "regression"])
def test_micro_batches_are_cut_from_one_stream(kind):
    stream = TrainingExamples(task_of(kind), seed=0)
    whole, *none = stream.batches(4, 6, 1)
    assert not none
    parts = stream.batches(4, 2, 3)
    for number, part in enumerate(parts):
        rows = slice(2 * number, 2 * number + 2)
        length = part.input_ids.shape[1]
        assert torch.equal(part.input_ids, whole.input_ids[rows, :length])
        assert (whole.input_ids[rows, length:] == 1).all(), "PAD behind the end"
        wide = part.targets.shape[-1]
        same = torch.isclose(part.targets.double(), whole.targets[rows][..., :wide].double(),
                             equal_nan=True)  # fmt: skip
        assert same.all()
    assert sum(p.weights.sum() for p in parts) == whole.weights.sum()


def test_weights_are_those_of_classes_in_training_alone():
    task = task_of("token_classification")
    batch = make_batch(task, task.train[:2], training=True, multiple=8)
    assert batch.input_ids.shape == (2, 8)
    assert batch.targets.tolist()[1] == [-100, 1, 1, 1, -100, -100, -100, -100]
    assert batch.weights.tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 4, 4, 4, 0, 0, 0, 0]]
    assert make_batch(task, task.train[:2]).weights.max() == 1


def test_unknown_numbers_have_no_weight():
    batch = make_batch(task_of("regression"), task_of("regression").train[:3], training=True)
    assert batch.weights.tolist() == [[1, 0]] * 3


@pytest.mark.parametrize(("size", "ranks"), [(1, 1), (2, 1), (2, 2), (3, 2), (4, 3)])
def test_every_rank_has_equally_many_and_all_are_shown(size, ranks):
    task = task_of("classification")
    shown: Counter[int] = Counter()
    counts = set()
    for rank in range(ranks):
        batches = list(evaluation_batches(task, "valid", size, rank, ranks))
        counts.add(len(batches))
        shown.update(n for batch in batches for n in batch.examples)
        assert all(len(batch.examples) == size == len(batch.input_ids) for batch in batches)
    assert len(counts) == 1 and set(shown) == {*range(5)}
