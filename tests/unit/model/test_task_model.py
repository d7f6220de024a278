"""Trunk and heads together: padding, weights, idle heads, dropout that any rank can repeat."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.model.task_model import TaskModel, padded_ids
from megatron_hyena.model.tasks import Task

TASKS = {
    "kind": Task("classification", num_classes=3, dropout=0.5, pooling="attention"),
    "bases": Task("token_classification", num_classes=2, dropout=0.5),
    "number": Task("regression", output_dim=2, dropout=0.5, weight=4.0),
}
ROWS = [torch.tensor([*text]) for text in (b"ACGTTGCAACGT", b"GGA", b"TTAACCGG")]


def model_of(pattern="SLA", causal=True, balance="fixed", **fields) -> TaskModel:
    config = HyenaGLTConfig(
        pattern=pattern, hidden_size=16, num_heads=2, window=4, vocab_size=128, causal=causal,
        init_std=0.3, **fields,
    )  # fmt: skip
    return TaskModel(HyenaGLT(config, seed=1), TASKS, balance, seed=2).double()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    ("pattern", "causal"), [("SMLHAW", True), ("SMLHAW", False), ("S(LA)0.5M", True)]
)
def test_padding_changes_nothing(pattern, causal, name):
    model = model_of(pattern, causal).eval()
    model.begin(name)
    together = model.predictions(padded_ids(ROWS, multiple=16))
    for row, told in zip(ROWS, together, strict=True):
        alone = model.predictions(row[None])[0]
        assert torch.allclose(told[: len(row)] if name == "bases" else told, alone, atol=1e-11)


def labels_of(name):
    """Labels and weights of `ROWS`; one row is unlabelled."""
    if name == "kind":
        return torch.tensor([2, -100, 1]), torch.tensor([1.0, 0.0, 3.0])
    if name == "number":
        targets = torch.tensor([[1.0, 2.0], [0.5, float("nan")], [-1.0, 3.0]])
        return targets, (~targets.isnan()).float()
    labels = torch.full((3, 12), -100)
    labels[0, 3:9], labels[2, :8] = 1, 0
    return labels, torch.where(labels == 1, 2.0, 0.5) * (labels != -100)


def by_hand(name, told, targets, weights) -> torch.Tensor:
    """The weighted sum of losses, number by number."""
    if name == "number":
        each = (told - targets.nan_to_num()) ** 2
        return 4 * sum(each[i, j] for i in range(3) for j in range(2) if weights[i, j])
    rows, flat = told.flatten(0, -2), targets.flatten()
    nats = [torch.logsumexp(row, 0) - row[c] for row, c in zip(rows, flat.tolist(), strict=True)
            if c >= 0]  # fmt: skip
    kept = weights.flatten()[flat >= 0]
    return sum(n * w for n, w in zip(nats, kept.tolist(), strict=True))


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_a_weighted_sum_and_idle_heads_have_gradients_of_zero(name):
    model = model_of().eval()
    model.begin(name)
    ids = padded_ids(ROWS)
    targets, weights = labels_of(name)
    loss, ratio = model.weighted_losses(ids, targets, weights)
    wanted = by_hand(name, model.predictions(ids), targets, weights)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-9) and ratio == 0
    loss.backward()
    for task in TASKS:
        gradients = [p.grad for p in model.head(task).parameters()]
        assert all(g is not None for g in gradients)
        assert any(g.any() for g in gradients if g is not None) == (task == name)
    assert all(p.grad is not None for p in model.trunk.parameters())


def test_dropout_is_a_function_of_step_rank_and_place():
    model = model_of().train()
    ids = padded_ids(ROWS)

    def twice(step: int, rank: int) -> list[torch.Tensor]:
        torch.rand(step + rank)  # whatever was drawn before
        model.begin("kind", step, rank)
        return [model.predictions(ids).detach() for _ in range(2)]

    first, second = twice(3, 0)
    assert not torch.equal(first, second), "the next micro-batch drops others"
    again = twice(3, 0)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    assert not torch.equal(first, twice(4, 0)[0]) and not torch.equal(first, twice(3, 1)[0])
    state = torch.random.get_rng_state()
    model.predictions(ids)
    assert torch.equal(state, torch.random.get_rng_state()), "nobody else's draws move"


def test_merging_is_held_at_its_rate_by_whole_rows():
    """The ratio loss is that of the trunk with each row's weight spread over its bases."""
    model = model_of("S(LA)0.5M").train()
    for stage in model.trunk.stages:
        stage.get_submodule("router.rate").get_buffer("wanted").fill_(0.9)
    ids = padded_ids(ROWS, multiple=4)
    targets, weights = labels_of("kind")
    model.begin("kind")
    found = model.weighted_losses(ids, targets, weights)[1]
    spread = torch.stack(
        [w / len(r) * (i != 1) for w, r, i in zip(weights, ROWS, ids, strict=True)]
    )
    zero = torch.zeros_like(ids)
    wanted = model.trunk.weighted_losses(ids, zero + 65, spread.double())[1]
    assert wanted > 0 and found.item() == pytest.approx(wanted.item(), rel=1e-6)
    model.routed = False
    assert model.weighted_losses(ids, targets, weights)[1] == 0


def test_no_such_task():
    with pytest.raises(UserError, match="there is no task 'x'; there are kind, bases, number"):
        model_of().begin("x")
