"""Merged models in a training loop of one's own: torch alone, without the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_hyena import HyenaGLT
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.keeping import Rates
from megatron_hyena.layers.merging.rate import POSITIONS, rate_state
from tests.oracles.merged_models import (
    NESTED,
    calibrate,
    dna,
    lively_model,
    merged_config,
    opening_fractions,
    stage_of,
    tracks_for,
)

pytestmark = pytest.mark.smoke

STEPS, LAST = 80, 20


def trained(pattern: str, held: bool, **changes: Any) -> tuple[list[list[float]], list[float]]:
    """Fractions of open positions of each of the last steps, and the ratio losses of all."""
    model = HyenaGLT(merged_config(pattern, window=32, slots=0, init_std=0.1, **changes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    if held:
        model.calibrate_merging(dna(2, 512, seed=1000))
    model.train()
    fractions, losses = [], []
    for step in range(STEPS):
        ids = dna(2, 512, seed=step)
        output = model(ids, labels=ids)
        (output.loss + output.ratio_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        fractions.append(opening_fractions(output))
        losses.append(output.ratio_loss.item())
        if held:
            figures = model.after_step()
            for number, fraction in enumerate(fractions[-1]):
                assert figures[f"merge/{number}/kept"] == pytest.approx(fraction)
    return fractions[-LAST:], losses


def mean(fractions: list[list[float]], stage: int) -> float:
    return sum(step[stage] for step in fractions) / len(fractions)


def test_a_plain_loop_holds_the_rates_of_nested_stages_and_has_a_ratio_loss() -> None:
    """Half of the bytes open a chunk, and a quarter of these one of the inner stage."""
    fractions, losses = trained("S(S(M)0.75S)0.5S", held=True)
    assert mean(fractions, 0) == pytest.approx(0.5, abs=0.03)
    assert mean(fractions, 1) == pytest.approx(0.25, abs=0.03)
    assert losses[0] == pytest.approx(0, abs=1e-12)
    assert max(map(abs, losses)) > 1e-5


def test_without_the_two_calls_nothing_holds_it() -> None:
    fractions, losses = trained("S(M)0.75S", held=False)
    assert abs(mean(fractions, 0) - 0.25) > 0.03
    assert losses == pytest.approx([0] * STEPS, abs=1e-12)


@pytest.mark.parametrize(
    "kind", [{}, {"adaptive": True, "complexity": "window", "gamma": 5.0}, {"merger": "static"}]
)
def test_calibration_is_that_of_each_stage_in_turn_and_leaves_no_trace(
    kind: dict[str, Any],
) -> None:
    """Against the oracle's; modes of modules, counts and gradients are as before."""
    config = merged_config(NESTED, **kind)
    ids, documents = dna(2, 192), torch.arange(192).expand(2, -1) // 64
    one, other = lively_model(config, ids), lively_model(config, ids)
    calibrate(other, lambda: other(ids, document_ids=documents))
    one.train()
    one.blocks[1].eval()
    one.calibrate_merging(ids, documents)
    for name, buffer in rate_state(one).items():
        assert torch.equal(buffer, rate_state(other)[name]), name
    modes = {name: module.training for name, module in one.named_modules() if name}
    assert modes == {name: not f"{name}.".startswith("blocks.1.") for name in modes}
    assert not any(stage_of(one, number).rate.counts.any() for number in range(2))
    assert all(parameter.grad is None for parameter in one.parameters())


def test_calibration_reads_tracks_and_a_model_without_stages_has_nothing_to_do() -> None:
    config = merged_config(merger="precomputed")
    ids = dna(2, 64)
    HyenaGLT(config).calibrate_merging(ids, tracks=tracks_for(config, ids))
    with pytest.raises(UserError, match="boundaries"):
        HyenaGLT(config).calibrate_merging(ids)
    plain = HyenaGLT(merged_config("SM")).train()
    plain.calibrate_merging(ids)
    plain(ids)
    assert plain.after_step() == {}


def test_micro_batches_of_a_step_count_together_and_evaluation_does_not() -> None:
    model = HyenaGLT(merged_config()).train()
    for seed in range(3):
        model(dna(2, 64, seed))
    model.eval()(dna(2, 64))
    (rate,) = Rates(model).rates
    assert rate.counts[POSITIONS] == 3 * 2 * 64
    assert 0 < model.after_step()["merge/0/kept"] < 1
    assert not rate.counts.any()


def test_one_of_several_ranks_is_refused() -> None:
    """Its counts are a part of the whole's."""
    model = HyenaGLT(merged_config())
    model.provider.size = 2
    for call in (model.after_step, lambda: model.calibrate_merging(dna(1, 16))):
        with pytest.raises(UserError, match=r"megatron_hyena\.engine"):
            call()
