"""Several tasks on one backbone: all of it is used, losses add up, and ranks agree."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from megatron_hyena import MultiTaskHyenaGLT
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.tasks import (
    Task,
    UncertaintyWeights,
    task_of_step,
    task_probabilities,
)
from tests.oracles.drawing import disturb, draw_bytes, small_config

L = 12
TASKS: dict[str, Any] = {
    "promoter": {"kind": "classification", "num_classes": 2, "dropout": 0.0, "examples": 900},
    "exon": {"kind": "token_classification", "num_classes": 3, "dropout": 0.0, "examples": 100},
    "expression": Task("regression", output_dim=2, dropout=0.0, weight=0.5),
}
IDS = draw_bytes(3, L)
LABELS = {
    "promoter": torch.tensor([0, 1, 1]),
    "exon": torch.arange(3 * L).reshape(3, L) % 3,
    "expression": torch.arange(6.0).reshape(3, 2),
}


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


def made(**options: object) -> MultiTaskHyenaGLT:
    model = MultiTaskHyenaGLT(small_config("SHA"), TASKS, **options)
    disturb(model)
    return model


def loss_of(model: MultiTaskHyenaGLT, name: str, **inputs: torch.Tensor) -> torch.Tensor:
    return model.task_loss(name, model(IDS, name, **inputs), LABELS[name])


@pytest.mark.parametrize(
    ("name", "shape"), [("promoter", (3, 2)), ("exon", (3, L, 3)), ("expression", (3, 2))]
)
def test_predictions_of_each_task(name: str, shape: tuple[int, ...]) -> None:
    model = made(shared_layers=1)
    states = model.backbone(IDS).last_hidden_state
    mask = torch.ones(3, L)
    assert model(IDS, name, mask).shape == shape
    direct = made()
    expected = direct.head(name)(direct.backbone(IDS).last_hidden_state, mask)
    assert torch.equal(direct(IDS, name, mask), expected)
    assert model.hidden_states(IDS).shape == states.shape
    assert not torch.allclose(model.hidden_states(IDS), states)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_the_whole_backbone_the_shared_layers_and_its_own_head(name: str) -> None:
    """The sketch read the embeddings alone; its backbone never had a gradient."""
    model = made(shared_layers=2)
    loss_of(model, name).backward()
    used = [*model.backbone.parameters(), *model.shared_layers.parameters()]
    used += model.head(name).parameters()
    assert len(used) == len({id(p) for p in used})
    for parameter in used:
        assert parameter.grad is not None
        assert parameter.grad.abs().amax() > 0
    for other in TASKS.keys() - {name}:
        assert all(p.grad is None for p in model.head(other).parameters())


def test_merging_inside_leaves_states_per_byte() -> None:
    """Also where the length is no multiple of the merging window."""
    model = MultiTaskHyenaGLT(small_config("S(H)S"), TASKS, shared_layers=1)
    disturb(model)
    assert model(IDS, "exon").shape == (3, L, 3)
    loss_of(model, "exon", attention_mask=torch.ones(3, L)).backward()
    assert all(p.grad is not None for p in model.backbone.blocks[1].parameters())


def test_documents_stay_apart_in_shared_layers_too() -> None:
    model, ids = made(shared_layers=1), IDS[:1]
    documents = torch.tensor([[0] * 5 + [1] * (L - 5)])
    packed = model.hidden_states(ids, documents)
    alone = torch.cat([model.hidden_states(ids[:, :5]), model.hidden_states(ids[:, 5:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.hidden_states(ids), alone, rtol=1e-2, atol=1e-2)


def test_fixed_weights_add_up() -> None:
    model = made()
    losses = {name: torch.tensor(value) for name, value in (("promoter", 2.0), ("expression", 6.0))}
    assert model.total_loss(losses).item() == pytest.approx(1.0 * 2 + 0.5 * 6)


def test_uncertainty_weights_have_their_optimum_where_the_noise_is() -> None:
    """Of a squared error L at log L, of other losses at log 2 L, however the losses differ."""
    weights = UncertaintyWeights({"easy": True, "hard": True, "classes": False})
    losses = {"easy": 0.01, "hard": 25.0, "classes": 0.7}
    optimizer = torch.optim.LBFGS(weights.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        total = weights({name: torch.tensor(value) for name, value in losses.items()})
        total.backward()
        return total

    optimizer.step(evaluate)
    expected = [math.log(0.01), math.log(25.0), math.log(2 * 0.7)]
    np.testing.assert_allclose(weights.log_variance.detach().numpy(), expected, atol=1e-3)


def test_uncertainty_weights_by_hand() -> None:
    model = made(balance="uncertainty")
    s = model.balance.get_parameter("log_variance").detach().tolist()
    losses = {"promoter": torch.tensor(2.0), "expression": torch.tensor(6.0)}
    expected = math.exp(-s[0]) * 2 + s[0] / 2 + 0.5 * math.exp(-s[2]) * 6 + s[2] / 2
    assert model.total_loss(losses).item() == pytest.approx(expected, rel=1e-5)
    model.total_loss({name: loss_of(model, name) for name in TASKS}).backward()
    grad = model.balance.get_parameter("log_variance").grad
    assert grad is not None
    assert grad.abs().amin() > 0


def test_every_parameter_carries_how_it_is_cut() -> None:
    for parameter in made(shared_layers=1, balance="uncertainty").parameters():
        assert cut_of(parameter).shape == parameter.shape


def test_sampling_by_temperature() -> None:
    sizes = {"a": 900, "b": 90, "c": 10}
    assert task_probabilities(sizes) == pytest.approx({"a": 0.9, "b": 0.09, "c": 0.01})
    halved = task_probabilities(sizes, 2.0)
    roots = [math.sqrt(n) for n in sizes.values()]
    assert list(halved.values()) == pytest.approx([r / sum(roots) for r in roots])
    assert list(task_probabilities(sizes, 1e6).values()) == pytest.approx([1 / 3] * 3, abs=1e-5)
    assert sum(task_probabilities({"a": 10**30, "b": 1}, 0.01).values()) == pytest.approx(1)


def test_tasks_come_as_often_as_they_should_and_repeat_exactly() -> None:
    wanted = task_probabilities({"a": 900, "b": 90, "c": 10})
    steps = 20_000
    drawn = [task_of_step(wanted, step, seed=5) for step in range(steps)]
    counts = Counter(drawn)
    for name, share in wanted.items():
        spread = math.sqrt(share * (1 - share) / steps)
        assert abs(counts[name] / steps - share) < 4 * spread
    assert drawn[100:200] == [task_of_step(wanted, step, seed=5) for step in range(100, 200)]
    assert drawn != [task_of_step(wanted, step, seed=6) for step in range(steps)]
    model = made(temperature=1.0)
    assert model.probabilities == pytest.approx(
        {"promoter": 0.9, "exon": 0.1, "expression": 0.001}, abs=1e-2
    )
    assert model.task_of_step(7) == made().task_of_step(7)


@pytest.fixture
def one_rank(tmp_path: Path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_all_heads_can_take_part_in_every_step(one_rank: None) -> None:
    """DistributedDataParallel refuses a step after one in which a head had no gradient."""

    def two_steps(all_heads: bool) -> MultiTaskHyenaGLT:
        model = made(balance="uncertainty")
        parallel = DistributedDataParallel(WithLoss(model, all_heads))
        for name in ("promoter", "exon"):
            parallel(name).backward()
        return model

    with pytest.raises(RuntimeError, match="reduction"):
        two_steps(all_heads=False)
    model = two_steps(all_heads=True)
    for name, idle in (("expression", True), ("exon", False)):
        for parameter in model.head(name).parameters():
            assert parameter.grad is not None
            assert (parameter.grad.abs().amax() == 0) == idle


class WithLoss(torch.nn.Module):
    """The loss of one task, as a forward pass."""

    def __init__(self, model: MultiTaskHyenaGLT, all_heads: bool) -> None:
        super().__init__()
        self.model, self.all_heads = model, all_heads

    def forward(self, name: str) -> torch.Tensor:
        return self.model.total_loss({name: loss_of(self.model, name)}, self.all_heads)


def test_heads_without_a_loss_change_nothing_in_the_loss() -> None:
    model = made()
    losses = {"exon": loss_of(model, "exon")}
    assert torch.equal(model.total_loss(losses, all_heads=True), model.total_loss(losses))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MultiTaskHyenaGLT(small_config("S"), {}), ("0 tasks",)),
        (
            lambda: MultiTaskHyenaGLT(small_config("S"), {"a": {"kind": "lm"}}),
            ("'lm'", "regression"),
        ),
        (
            lambda: MultiTaskHyenaGLT(small_config("S"), {"a": {"num_classes": 2}}),
            ("'a'", "a kind"),
        ),
        (
            lambda: MultiTaskHyenaGLT(small_config("S"), {"a": {"kind": "regression", "outs": 2}}),
            ("'outs'", "output_dim"),
        ),
        (
            lambda: MultiTaskHyenaGLT(small_config("S"), {"a.b": {"kind": "regression"}}),
            ("'a.b'", "no dot"),
        ),
        (lambda: made(balance="gradnorm"), ("'gradnorm'", "uncertainty")),
        (lambda: made(temperature=0.0), ("0.0", "temperature")),
        (lambda: made()(IDS, "splice"), ("'splice'", "promoter, exon, expression")),
        (lambda: made().total_loss({}), ("at least one",)),
        (lambda: made().total_loss({"splice": torch.tensor(1.0)}), ("'splice'",)),
        (lambda: made()(IDS, "exon", torch.ones(3, L - 1)), ("[3, 11]", "[3, 12, 8]")),
        (lambda: made()(IDS, "promoter", torch.ones(3, L - 1)), ("[3, 11]", "[3, 12, 8]")),
        (lambda: Task("regression", weight=0.0), ("weight=0.0",)),
        (lambda: Task("regression", examples=0), ("examples=0",)),
    ],
)
def test_what_does_not_fit_is_refused(call, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
