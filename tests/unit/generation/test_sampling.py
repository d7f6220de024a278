"""Draws follow the asked distribution, by each sequence's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from megatron_hyena.errors import UserError
from megatron_hyena.generation.sampling import Sampling

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -math.inf, 2.5], [0.0, 0.0, 0.0, 0.0, 0.0]])


def expected(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """By explicit loops, in the order: temperature, top-k, top-p."""
    weights = [math.exp(x / temperature) for x in logits]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if top_k:
        order = order[:top_k]
    total, kept, reached = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if reached >= top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (2, 1.0), (9, 1.0), (0, 0.7), (3, 0.6)])
def test_probabilities(temperature: float, top_k: int, top_p: float) -> None:
    found = Sampling(temperature, top_k, top_p).probabilities(LOGITS)
    wanted = [expected(row, temperature, top_k, top_p) for row in LOGITS.tolist()]
    assert np.allclose(found.numpy(), wanted, atol=1e-12, rtol=0)


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    chosen = Sampling(temperature=0.0).draw(LOGITS, torch.tensor([0.999, 0.999]))
    assert chosen.tolist() == [1, 0]


def test_draws_are_as_frequent_as_they_are_likely() -> None:
    sampling, count = Sampling(temperature=0.7, top_p=0.9, seed=3), 20_000
    numbers = sampling.numbers("one", count)
    drawn = sampling.draw(LOGITS[:1].expand(count, -1), numbers)
    p = np.array(expected(LOGITS[0].tolist(), 0.7, 0, 0.9))
    found = np.bincount(drawn.numpy(), minlength=5) / count
    assert np.abs(found - p).max() < 5 * math.sqrt(0.25 / count)
    assert (found[p == 0] == 0).all()


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_no_number_draws_what_is_ruled_out(number: float) -> None:
    logits = torch.tensor([[-math.inf, 0.3, -math.inf, 0.1, -math.inf]])
    drawn = Sampling().draw(logits, torch.tensor([number], dtype=torch.float64))
    assert drawn.item() == (1 if number <= 0.5 else 3)


def test_numbers_are_a_sequences_own() -> None:
    sampling = Sampling(seed=1)
    assert torch.equal(sampling.numbers("a", 9), sampling.numbers("a", 30)[:9])
    others = [Sampling(seed=2).numbers("a", 9), sampling.numbers("b", 9)]
    assert all(not torch.equal(sampling.numbers("a", 9), other) for other in others)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, r"temperature -0.1 must be 0 \(greedy\) or more"),
        ({"temperature": math.nan}, "temperature nan must be"),
        ({"top_k": -1}, r"top-k -1 must be 0 \(all letters\) or more"),
        ({"top_p": 0.0}, "top-p 0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top-p 1.5 must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**changes)  # type: ignore[arg-type]
