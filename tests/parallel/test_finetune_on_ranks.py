"""Fine-tuning in every kind of layout computes what plain torch does, sequence by sequence."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from megatron_hyena import HyenaGLT
from tests.parallel.finetune_cases import (
    MERGED,
    MODEL,
    Tuning,
    relative,
    resume_on_ranks,
    tune_dense,
    tune_modules,
    tune_on_ranks,
)
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

FAST = [
    Tuning(tensor=2, sequence=True, zero=1, pieces=2, method="gradual"),
    Tuning(context=2, zero=3, balance="uncertainty"),
    Tuning(data=2, zero=2, pieces=2),
    Tuning(data=2, zero=3, method="gradual"),
    Tuning(tensor=2, zero=0, method="frozen"),
    Tuning(context=2, zero=1, method="lora", recompute="block"),
]
SLOW = [
    Tuning(tensor=2, context=2, sequence=sequence, zero=zero, method=method, balance=balance)
    for sequence in (False, True)
    for zero in range(4)
    for method, balance in (("full", "uncertainty"), ("gradual", "fixed"), ("frozen", "fixed"))
]
SLOW += [Tuning(context=2, data=2, zero=zero, method="gradual") for zero in range(4)]
SLOW += [Tuning(context=2, data=2, zero=zero, method="lora") for zero in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A saved model."""
    path = tmp_path_factory.mktemp("model")
    HyenaGLT(MODEL, seed=3).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def merged_folder(tmp_path_factory) -> str:
    """A saved model with a merged stage."""
    path = tmp_path_factory.mktemp("merged")
    HyenaGLT(MERGED, seed=3).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def dense(folder):
    """The reference of a method, from the heads that a run starts with."""
    from megatron_hyena.model.task_model import TaskModel
    from pretrain.finetune_build import head_of
    from tests.parallel.finetune_cases import configure, task_data

    @lru_cache
    def reference(method, balance):
        sections = configure(Tuning(method=method, balance=balance), folder).all_tasks
        heads = {s.name: head_of(s, task_data(s.name)) for s in sections}
        model = TaskModel(HyenaGLT.from_pretrained(folder), heads)
        start = {name: p.detach() for name, p in model.named_parameters()}
        return tune_dense(folder, method, balance, start)

    return reference


def check(tuning, ranks, wanted):
    found = ranks[0]
    assert found.losses == pytest.approx(wanted.losses, rel=2e-5, abs=2e-6), tuning
    assert found.grad_norms == pytest.approx(wanted.grad_norms, rel=1e-4), tuning
    for name, weight in wanted.weights.items():
        assert relative(found.weights[name], weight) < 1e-4, (str(tuning), name)
    for kind, predictions in wanted.predictions.items():
        for told, right in zip(found.predictions[kind], predictions, strict=True):
            assert np.abs(told - right).max() < 1e-4 * max(1, np.abs(right).max()), (tuning, kind)
    for other in ranks[1:]:
        for name, weight in found.weights.items():
            assert torch.equal(other.weights[name], weight), (str(tuning), name)


def test_two_ranks(tmp_path, folder, dense):
    results = run_ranks(tune_on_ranks, 2, tmp_path, FAST, folder)
    for tuning in FAST:
        check(tuning, [r[tuning] for r in results], dense(tuning.method, tuning.balance))


DROPPING = [
    Tuning(tensor=2, sequence=True, zero=2, dropout=0.4),
    Tuning(context=2, zero=3, dropout=0.4),
]


def test_merged_stages_and_dropout_on_two_ranks(tmp_path, merged_folder):
    """Ranks that share a sequence drop the same, and hold its merging's rate together."""
    results = run_ranks(tune_on_ranks, 2, tmp_path, DROPPING, merged_folder)
    for tuning in DROPPING:
        wanted = tune_modules(merged_folder, tuning)
        without = tune_modules(merged_folder, replace(tuning, dropout=0.0))
        assert abs(wanted.losses[0] - without.losses[0]) > 1e-3, "nothing was dropped"
        check(tuning, [r[tuning] for r in results], wanted)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (Tuning(tensor=2, sequence=True, method="gradual"), Tuning(context=2, zero=3)),
        pytest.param(
            Tuning(data=2, zero=2, method="lora"), Tuning(context=2, zero=0),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Tuning(data=2, zero=3, method="frozen"), Tuning(tensor=2, zero=1),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)  # fmt: skip
def test_it_goes_on_in_another_layout(tmp_path, folder, first, then):
    then = replace(then, method=first.method, balance="uncertainty")
    first = replace(first, balance="uncertainty")
    (straight, resumed), _ = run_ranks(
        resume_on_ranks, 2, tmp_path / "ranks", first, then, folder, str(tmp_path / "saved")
    )
    assert resumed == pytest.approx(straight, rel=1e-4)
    assert len(straight) == 3


@pytest.mark.slow
def test_four_ranks(tmp_path, folder, dense):
    results = run_ranks(tune_on_ranks, 4, tmp_path, SLOW, folder, timeout=500)
    for tuning in SLOW:
        check(tuning, [r[tuning] for r in results], dense(tuning.method, tuning.balance))
