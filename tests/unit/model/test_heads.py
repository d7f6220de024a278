"""Heads against loops over bytes: pooling, predictions, losses, and what is not scored."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena import (
    HyenaGLT,
    RegressionHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import cut_of, initialise
from megatron_hyena.model.heads import TaskHead
from megatron_hyena.model.pooling import POOLINGS, Pooling
from tests.oracles.drawing import disturb, draw, draw_bytes, small_config, weights

B, L, D = 5, 11, 8
MASK = torch.tensor(
    [[1] * 11, [1] * 4 + [0] * 7, [0] * 3 + [1] * 5 + [0] * 3, [0] * 10 + [1], [0] * 11]
)
"""All, a prefix, the middle, the last byte alone, none."""


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


def pool(kind: str) -> Pooling:
    made = Pooling(D, kind)
    initialise(made, 3, 0, 1)
    return made.double()


def pooled_by_hand(kind: str, rows: list[list[np.ndarray]], score: np.ndarray) -> np.ndarray:
    """`rows`: the vectors that are read, of each sequence."""
    out = np.zeros((len(rows), D))
    for b, row in enumerate(rows):
        if not row:
            continue
        if kind == "mean":
            out[b] = sum(row) / len(row)
        elif kind == "cls":
            out[b] = row[0]
        elif kind == "last":
            out[b] = row[-1]
        elif kind == "max":
            out[b] = [max(v[c] for v in row) for c in range(D)]
        else:
            shares = [math.exp(float(v @ score)) for v in row]
            out[b] = sum(s * v for s, v in zip(shares, row, strict=True)) / sum(shares)
    return out


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_equals_a_loop_over_the_bytes_that_are_read(kind: str, masked: bool) -> None:
    made, states = pool(kind), draw(B, L, D)
    score = weights(made)["score"] if kind == "attention" else np.zeros(D)
    read = MASK.bool() if masked else torch.ones_like(MASK).bool()
    rows = [
        [v.numpy() for v, r in zip(s, m, strict=True) if r]
        for s, m in zip(states, read, strict=True)
    ]
    expected = pooled_by_hand(kind, rows, score)
    for mask in [MASK, MASK.bool(), MASK.double()] if masked else [None]:
        found = made(states, mask).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", POOLINGS)
def test_bytes_that_are_not_read_cannot_matter(kind: str) -> None:
    """Not even NaN; an empty row gives zeros, and every gradient is finite."""
    made, states = pool(kind), draw(B, L, D)
    spoilt = states.masked_fill(MASK[..., None] == 0, math.nan).requires_grad_()
    clean = made(states, MASK)
    found = made(spoilt, MASK)
    assert torch.equal(found, clean)
    assert torch.equal(found[4], torch.zeros(D, dtype=torch.float64))
    found.square().sum().backward()
    assert spoilt.grad is not None
    assert torch.isfinite(spoilt.grad).all()
    assert (spoilt.grad[MASK == 0] == 0).all()
    assert (spoilt.grad[:4].abs().amax((1, 2)) > 0).all()


def test_pooling_of_half_precision_is_in_fp32() -> None:
    states = torch.randn(1, 4096, D).bfloat16() + 1
    found = Pooling(D)(states)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0].double(), states[0].double().mean(0), rtol=1e-5, atol=1e-5)


def refused(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_and_states_of_another_shape_are_refused() -> None:
    """A mask of the merged length is the classical mistake."""
    states = torch.randn(2, 8, D)
    refused(lambda: Pooling(D)(states, torch.ones(2, 3)), "[2, 3]", "[2, 8, 8]", "per byte")
    refused(lambda: Pooling(D)(states[0]), "[8, 8]")
    refused(lambda: Pooling(D)(states[:, :0]), "[2, 0, 8]")
    refused(lambda: Pooling(D, "middle"), "'middle'", "attention")


def pooled_head(kind: str) -> Callable[[], TaskHead]:
    return lambda: SequenceClassificationHead(D, 3, pooling=kind)


def regression_head(kind: str) -> Callable[[], TaskHead]:
    return lambda: RegressionHead(D, 2, loss=kind)


HEADS: dict[str, Callable[[], TaskHead]] = {
    **{kind: pooled_head(kind) for kind in POOLINGS},
    "token": lambda: TokenClassificationHead(D, 3),
    **{kind: regression_head(kind) for kind in ("mse", "huber", "poisson")},
}


def labels_for(name: str) -> Tensor:
    if name == "token":
        return torch.arange(B * L).reshape(B, L) % 3
    if name in POOLINGS:
        return torch.arange(B) % 3
    return torch.arange(2.0 * B).reshape(B, 2)


def made_head(name: str) -> TaskHead:
    head = HEADS[name]()
    disturb(head)
    return head


@pytest.mark.parametrize("name", HEADS)
def test_shapes(name: str) -> None:
    head = made_head(name)
    shape = (B, L, 3) if name == "token" else (B, 3 if name in POOLINGS else 2)
    found = head(torch.randn(B, L, D), MASK)
    assert found.shape == shape
    assert torch.isfinite(found).all()
    assert head.loss(found, labels_for(name)).shape == ()


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_and_the_backbone_get_a_gradient(name: str) -> None:
    model, head = HyenaGLT(small_config("SA")), made_head(name).train()
    disturb(model)
    states = model(draw_bytes(B, L)).last_hidden_state
    head.loss(head(states, MASK), labels_for(name)).backward()
    for key, parameter in [*model.named_parameters(), *head.named_parameters()]:
        assert parameter.grad is not None, key
        assert parameter.grad.abs().amax() > 0, key


@pytest.mark.parametrize("name", HEADS)
def test_parameters_carry_how_they_are_cut(name: str) -> None:
    for parameter in HEADS[name]().parameters():
        assert cut_of(parameter).shape == parameter.shape
        assert cut_of(parameter).dim is None


def test_sequence_head_by_hand() -> None:
    head, states = made_head("mean").double().eval(), draw(B, L, D)
    w = weights(head)
    pooled = states[:4].numpy()
    mask = MASK[:4].numpy()[..., None]
    mean = (pooled * mask).sum(1) / mask.sum(1)
    hidden = np.tanh(mean @ w["pooler.weight"].T + w["pooler.bias"])
    expected = hidden @ w["classifier.weight"].T + w["classifier.bias"]
    found = head(states[:4], MASK[:4]).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_regression_head_by_hand(kind: str) -> None:
    head = RegressionHead(D, 2, loss=kind, target_mean=100.0, target_std=5.0).double().eval()
    disturb(head)
    w, states = weights(head), draw(B, L, D)
    hidden = np.maximum(states.numpy().mean(1) @ w["inner.weight"].T + w["inner.bias"], 0)
    expected = 100 + 5 * (hidden @ w["output.weight"].T + w["output.bias"])
    np.testing.assert_allclose(head(states).detach().numpy(), expected, atol=1e-11)
    assert head.inner.weight.shape == (D // 2, D)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_regression_losses_are_in_standard_units(kind: str) -> None:
    head = RegressionHead(D, 2, loss=kind, target_std=5.0, delta=0.7)
    predictions = torch.tensor([[0.0, 10.0], [3.0, -20.0]])
    targets = torch.tensor([[1.0, math.nan], [3.5, 0.0]])
    errors = [-1 / 5, -0.5 / 5, -20 / 5]
    each = [e * e if kind == "mse" else 0.5 * e * e for e in errors]
    if kind == "huber":
        each[2] = 0.7 * (4.0 - 0.35)
    assert float(head.loss(predictions, targets)) == pytest.approx(sum(each) / 3)


def test_poisson_loss_is_a_probability() -> None:
    rate = torch.tensor([[0.5, 3.0, 20.0, 1e-30]], dtype=torch.float64)
    count = torch.tensor([[0.0, 5.0, 17.0, 0.0]], dtype=torch.float64)
    pairs = zip(rate[0].tolist(), count[0].tolist(), strict=True)
    chances = [math.exp(-r) * r**n / math.factorial(int(n)) for r, n in pairs]
    expected = -sum(map(math.log, chances)) / 4
    head = RegressionHead(D, 4, loss="poisson")
    assert float(head.loss(rate, count)) == pytest.approx(expected, rel=1e-12)
    assert float(head.loss(torch.zeros(1, 4), torch.ones(1, 4))) < math.inf
    assert (made_head("poisson")(torch.randn(B, L, D)) >= 0).all()


def test_classification_losses_by_hand() -> None:
    logits, labels = draw(B, L, 3), labels_for("token")
    labels[0, :4] = -100
    nats = [
        -F.log_softmax(logits[b, t], -1)[labels[b, t]]
        for b in range(B)
        for t in range(L)
        if labels[b, t] != -100
    ]
    assert len(nats) == B * L - 4
    head = TokenClassificationHead(D, 3)
    torch.testing.assert_close(head.loss(logits, labels), torch.stack(nats).mean())
    zeros = labels.masked_fill(labels == -100, 0)
    kept = [n for n, c in zip(nats, labels[labels != -100], strict=True) if c != 0]
    torch.testing.assert_close(head.loss(logits, zeros, ignore_index=0), torch.stack(kept).mean())


@pytest.mark.parametrize("name", HEADS)
def test_a_batch_without_labels_has_no_loss_and_no_gradient(name: str) -> None:
    head, labels = made_head(name), labels_for(name)
    none = torch.full_like(labels, math.nan if labels.is_floating_point() else -100)
    states = torch.randn(B, L, D, requires_grad=True)
    loss = head.loss(head(states, MASK), none)
    assert loss.item() == 0.0
    loss.backward()
    assert states.grad is not None
    assert (states.grad == 0).all()


def test_targets_of_one_number_may_be_flat() -> None:
    head = RegressionHead(D)
    predictions, targets = torch.randn(B, 1), torch.randn(B)
    assert torch.equal(head.loss(predictions, targets), head.loss(predictions, targets[:, None]))


def test_dropout_in_training_alone() -> None:
    states = torch.randn(40, L, D)
    for name in HEADS:
        head = made_head(name)
        head.dropout.p = 0.5
        assert not torch.equal(head.train()(states), head(states)), name
        assert torch.equal(head.eval()(states), head(states)), name


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SequenceClassificationHead(D, 0), ("num_classes=0",)),
        (lambda: RegressionHead(D, 0), ("output_dim=0",)),
        (lambda: RegressionHead(D, loss="mae"), ("'mae'", "huber")),
        (lambda: RegressionHead(D, target_std=0.0), ("target_std=0.0",)),
        (lambda: RegressionHead(D, loss="poisson", target_std=2.0), ("target_std", "poisson")),
        (lambda: TokenClassificationHead(D, 3)(torch.randn(1, 2, 9)), ("8 channels", "9")),
        (
            lambda: TokenClassificationHead(D, 3).loss(torch.zeros(1, 4, 3), torch.zeros(1, 5)),
            ("[1, 5]", "[1, 4, 3]"),
        ),
        (
            lambda: TokenClassificationHead(D, 3).loss(
                torch.zeros(1, 2, 3), torch.tensor([[0, 3]])
            ),
            ("label 3", "0 to 2"),
        ),
        (
            lambda: RegressionHead(D, 2).loss(torch.zeros(1, 2), torch.zeros(1, 3)),
            ("[1, 3]", "[1, 2]"),
        ),
        (
            lambda: RegressionHead(D, 2, loss="poisson").loss(
                torch.ones(1, 2), torch.tensor([[1.0, -2.0]])
            ),
            ("-2.0", "negative"),
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, words: tuple[str, ...]) -> None:
    refused(call, *words)
