"""Adaptive merging takes chunks from simple sequence and gives them to complex: the total stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from tests.oracles.merged_models import calibrate, stage_of

STRETCH, STRETCHES, ROWS = 256, 4, 9
TOTAL = 0.03
"""How far the kept fraction may be from that of a model that is not adaptive."""
LETTERS = torch.tensor(list(b"ACGT"))


def repeat(kind: int, generator: torch.Generator) -> Tensor:
    """Tandem copies of 2 to 6 bases, or of 24, or two letters at random: [STRETCH]."""

    def drawn(count: int) -> Tensor:
        return LETTERS[torch.randint(0, 4, (count,), generator=generator)]

    if kind == 2:
        two = LETTERS[torch.randperm(4, generator=generator)[:2]]
        return two[torch.randint(0, 2, (STRETCH,), generator=generator)]
    unit = drawn(24 if kind else 2 + int(torch.randint(0, 5, (), generator=generator)))
    return unit.repeat(STRETCH)[:STRETCH]


def alternating(seed: int) -> tuple[Tensor, Tensor]:
    """Bytes [B, L] of unique stretches and repeats in turn, and which are repeats."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in range(ROWS):
        for stretch in range(STRETCHES):
            unique = LETTERS[torch.randint(0, 4, (STRETCH,), generator=generator)]
            rows.append(repeat((row + stretch // 2) % 3, generator) if stretch % 2 else unique)
    repeats = (torch.arange(STRETCHES) % 2 > 0).repeat_interleave(STRETCH)
    return torch.cat(rows).view(ROWS, -1), repeats.expand(ROWS, -1)


def untrained(**changes: Any) -> HyenaGLT:
    values: dict[str, Any] = {"hidden_size": 16, "num_heads": 2, "merge_ratio": 0.5, "window": 32}
    return HyenaGLT(HyenaGLTConfig(pattern="S(M)S", **{**values, **changes}), seed=0)


@torch.no_grad()
def settled(model: HyenaGLT) -> float:
    """Calibrate, then some steps of the rate alone, in which no weight changes.

    Returns:
        the kept fraction, a mean over the last half of these steps; the model is in eval mode.
    """
    calibrate(model, lambda: model.hidden(alternating(1)[0]))
    rate, totals = stage_of(model).rate, []
    model.train()
    for step in range(12):
        model.hidden(alternating(2 + step)[0])
        totals.append(rate.update(rate.take())["kept"])
    model.eval()
    return sum(totals[6:]) / 6


@torch.no_grad()
def kept(model: HyenaGLT) -> tuple[float, float]:
    """Of repeats and of unique sequence, on bytes that the rate has not seen."""
    ids, repeats = alternating(99)
    opens = model(ids).merges[0].chunks.opens_nWB.flatten(0, 1).t().double()
    return float(opens[repeats].mean()), float(opens[~repeats].mean())


@pytest.mark.parametrize(
    ("merge_ratio", "router_input"),
    [
        (0.5, "encoder"),
        (2 / 3, "trunk"),
        pytest.param(0.5, "trunk", marks=pytest.mark.slow),
        pytest.param(2 / 3, "encoder", marks=pytest.mark.slow),
    ],
)
def test_words_move_chunks_out_of_repeats_at_once(merge_ratio: float, router_input: str) -> None:
    """With the budget of the default, which crowded chunks exceed."""
    changes = {"merge_ratio": merge_ratio, "router_input": router_input}
    plain, adaptive = untrained(**changes), untrained(adaptive=True, complexity="kmer", **changes)
    before, after = settled(plain), settled(adaptive)
    assert abs(after - before) <= TOTAL
    assert abs(after - (1 - merge_ratio)) <= TOTAL
    simple, unique = kept(adaptive)
    assert simple < unique - 0.1
    assert simple < kept(plain)[0] - 0.05


def learn_repeats(model: HyenaGLT, steps: int) -> None:
    """Teach the estimator of complexity, and nothing else, where the sequence is complex."""
    router = stage_of(model).router
    assert router is not None and router.complexity is not None
    seen: list[tuple[Any, ...]] = []

    def note(_module: object, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs)

    handle = router.complexity.register_forward_pre_hook(note)
    with torch.no_grad():
        model.hidden(alternating(100)[0])
    handle.remove()
    unique = (~alternating(100)[1]).float().t()
    optimizer = torch.optim.Adam(router.complexity.parameters(), lr=0.02)
    for _ in range(steps):
        loss = torch.nn.functional.binary_cross_entropy(router.complexity(*seen[0]), unique)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_an_estimator_that_knows_repeats_moves_chunks_out_of_them() -> None:
    """The windows before are enough to tell, and the total stays.

    What it learns from the language model's loss is that loss's business: see docs/merging.md.
    """
    plain = untrained(router_input="trunk")
    model = untrained(router_input="trunk", adaptive=True, complexity="window")
    learn_repeats(model, 60)
    assert abs(settled(model) - settled(plain)) <= TOTAL
    simple, unique = kept(model)
    assert simple < unique - 0.1
