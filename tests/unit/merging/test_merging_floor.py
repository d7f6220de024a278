"""On independent random bases nothing can be known: a model that beats ln 4 has seen the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.sections import OptimSection
from megatron_hyena.engine.groups import parameter_groups
from megatron_hyena.layers.merging.router import Router
from megatron_hyena.layers.merging.stage import Merge, MergedStage
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import small_config

pytestmark = pytest.mark.smoke

FLOOR = math.log(4)
BELOW, ABOVE = 0.005, 0.05
"""Nats per base: what a model may be under the floor by chance, and how near it must come."""
ROWS, LENGTH, WARM_UP, LR = 8, 64, 20, 1e-2
KINDS: dict[str, dict[str, Any]] = {
    "wcc": {},
    "adaptive": {"adaptive": True, "complexity": "window"},
    "adaptive kmer": {"adaptive": True, "complexity": "kmer"},
    "hnet": {"merger": "hnet"},
    "nested": {"pattern": "S(S(M)0.3S)S"},
    "trunk": {"router_input": "trunk"},
}


def by_hand(*of_the_suite: str) -> list[Any]:
    """All kinds, the others than these marked slow."""
    return [pytest.param(k, marks=() if k in of_the_suite else pytest.mark.slow) for k in KINDS]


def config_of(kind: str) -> HyenaGLTConfig:
    changes = {"pattern": "S(M)S", "merge_ratio": 0.5, "window": 16, **KINDS[kind]}
    pattern = changes.pop("pattern")
    values = {"hidden_size": 16, "ffn_hidden_size": 32, "num_heads": 2, "init_std": 0.02}
    return small_config(pattern, **{**values, **changes})


def bases(rows: int, length: int, generator: torch.Generator) -> Tensor:
    letters = torch.tensor(list(b"ACGT"))
    return letters[torch.randint(0, 4, (rows, length), generator=generator)]


def train(model: HyenaGLT, batches: Iterator[Tensor], steps: int) -> list[float]:
    """As the engine does: calibrated, router at its own learning rate, rates moved each step.

    Returns:
        the language model's loss in each step, nats per base.
    """
    model.train()
    found = []
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimSection()), betas=(0.9, 0.95))
    stages = [stage for stage in model.stages if isinstance(stage, MergedStage)]
    for step in range(steps):
        ids = next(batches)
        weights = torch.ones(ids[:, 1:].shape)
        for stage in stages if step == 0 else ():
            with torch.no_grad():
                model.hidden(ids[:, :-1])
            stage.rate.start(stage.rate.take())
            for other in stages:
                other.rate.take()
        for group in optimizer.param_groups:
            group["lr"] = LR * group["lr_factor"] * min(1.0, (step + 1) / WARM_UP)
        optimizer.zero_grad()
        losses = model.weighted_losses(ids[:, :-1], ids[:, 1:], weights)
        (losses.sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(float(losses[0].detach() / weights.sum()))
        for stage in stages:
            stage.rate.update(stage.rate.take())
    return found


@torch.no_grad()
def held_out(model: HyenaGLT) -> float:
    """Nats per base of 16,384 fresh ones."""
    ids = bases(256, LENGTH + 1, torch.Generator().manual_seed(99))
    return float(model.eval().token_losses(ids[:, :-1], ids[:, 1:]).mean())


def fresh(seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield bases(ROWS, LENGTH + 1, generator)


def repeated(rows: int, length: int) -> Iterator[Tensor]:
    """A few bases, again and again."""
    ids = bases(rows, length + 1, torch.Generator().manual_seed(5))
    while True:
        yield ids


def next_one(x_LB: Tensor) -> Tensor:
    """At each position, what belongs to the one behind it."""
    return torch.cat([x_LB[1:], x_LB[-1:]])


def leaky_vectors(patch: pytest.MonkeyPatch) -> None:
    """Chunks' vectors one position late: a chunk that opens at t holds base t + 1."""
    made = MergedStage._vectors

    def vectors(self: MergedStage, x_LBH: Tensor, merge: Merge) -> Tensor:
        return made(self, next_one(x_LBH), merge)

    patch.setattr(MergedStage, "_vectors", vectors)


def leaky_router(patch: pytest.MonkeyPatch) -> None:
    """A router that sees base t + 1 where it decides whether a chunk opens at t."""
    made = Router.forward

    def forward(self: Router, x_LBH: Tensor, *more: Any) -> tuple[Tensor, Tensor | None]:
        logits, complexity = made(self, x_LBH, *more)
        return next_one(logits), complexity

    patch.setattr(Router, "forward", forward)


LEAKS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, int]] = {
    "chunk vectors": (leaky_vectors, "wcc", 50),
    "chunk vectors, hnet": (leaky_vectors, "hnet", 50),
    # What decisions alone tell is learned later, by a router that tells the letters apart.
    "router": (leaky_router, "trunk", 150),
}


@pytest.mark.parametrize("kind", by_hand("wcc", "trunk"))
def test_fresh_random_bases_cost_ln_4_and_no_less(kind: str) -> None:
    """It has learned all that there is, the letters, and nothing that there is not."""
    model = HyenaGLT(config_of(kind), seed=1)
    assert held_out(model) > FLOOR + 1
    train(model, fresh(), 100)
    assert FLOOR - BELOW <= held_out(model) <= FLOOR + ABOVE


@pytest.mark.parametrize(
    "leak",
    [
        "chunk vectors",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("chunk vectors, hnet", "router")),
    ],
)
def test_a_model_that_sees_the_next_base_is_caught(
    leak: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, kind, steps = LEAKS[leak]
    make(monkeypatch)
    model = HyenaGLT(config_of(kind), seed=1)
    train(model, fresh(), steps)
    assert held_out(model) < FLOOR - BELOW


@pytest.mark.parametrize("kind", by_hand("wcc"))
def test_bases_learned_by_heart_help_with_no_others(kind: str) -> None:
    """Two sequences again and again are known at last; fresh ones cost more than they did."""
    model = HyenaGLT(config_of(kind), seed=1)
    assert min(train(model, repeated(2, 48), 100)) < FLOOR - 0.5
    assert held_out(model) >= FLOOR - BELOW


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_floor_holds_for_as_long_as_it_takes_to_learn_a_leak(kind: str) -> None:
    """600 steps, four times what the slowest leak above takes."""
    model = HyenaGLT(config_of(kind), seed=2)
    train(model, fresh(seed=2), 600)
    assert FLOOR - BELOW <= held_out(model) <= FLOOR + ABOVE
