"""Mergers are trained by the language model's loss, and recomputation decides nothing again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.layers.merging.rate import OPENED, POSITIONS, Rate
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.merged_models import (
    KINDS,
    LEARNED,
    NESTED,
    assert_lively,
    calibrate,
    dna,
    lively_model,
    merged_config,
    record,
    stage_of,
    tracks_for,
)

LENGTH = 192


def gradients(model: HyenaGLT, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("disturbed", [False, True], ids=["first weights", "random weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_loss_alone_trains_every_parameter_of_the_merger(
    kind: str, disturbed: bool
) -> None:
    """Without a ratio loss; from the first weights of training on, in both nested stages."""
    config = merged_config(NESTED, ratio_weight=0.0, init_std=0.1, **KINDS[kind])
    ids = dna(3, LENGTH)
    tracks = tracks_for(config, ids)
    model = lively_model(config, ids) if disturbed else HyenaGLT(config).double()
    if not disturbed:
        calibrate(model, lambda: model(ids, tracks=tracks))
    model.train()
    output = model(ids, ids, tracks=tracks)
    assert_lively(output)
    assert output.ratio_loss == 0
    found = gradients(model, output.loss)
    merger = {n: g for n, g in found.items() if n.startswith(("stages.", "byte_axis."))}
    assert len(merger) >= 2
    for name, gradient in merger.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def test_half_of_a_stage_of_units_learns() -> None:
    """Not one number of each parameter only: most of a router's units receive a gradient."""
    config = merged_config(NESTED, ratio_weight=0.0)
    model = lively_model(config, dna(3, LENGTH)).train()
    found = gradients(model, model(dna(3, LENGTH), dna(3, LENGTH)).loss)
    for name in ("norm.weight", "similarity.pair", "similarity.bias", "similarity.out"):
        for number in range(2):
            gradient = found[f"stages.{number}.router.{name}"]
            assert (gradient != 0).double().mean() > 0.5, name


@pytest.mark.parametrize("kind", LEARNED)
def test_the_ratio_loss_reaches_the_router_and_nothing_behind_it(kind: str) -> None:
    """Its gradient is that of weight N / (N - 1) (N F - 1) mean(p): not one of the last layers."""
    config = merged_config("S(M)S", ratio_weight=1.0, **KINDS[kind])
    ids = dna(3, LENGTH)
    model = lively_model(config, ids).train()
    rate = stage_of(model).rate
    rate.wanted.fill_(1.3 * rate.target)
    output = model(ids, ids)
    named = dict(model.named_parameters())
    found = dict(
        zip(
            named,
            torch.autograd.grad(output.ratio_loss, list(named.values()), allow_unused=True),
            strict=True,
        )
    )
    for name, gradient in found.items():
        if "router" in name or "trunk" in name:
            assert gradient is not None, name
            assert gradient.abs().max() > 0, name
    for name in ("blocks.1.mixer.output", "blocks.2.mixer.output", "stages.0.skip"):
        assert found[name] is None
    assert_is_the_equation(output.ratio_loss, output.merges[0].probability_LB, ids, config, rate)


def assert_is_the_equation(
    loss: Tensor, p_LB: Tensor | None, ids: Tensor, config: HyenaGLTConfig, rate: Rate
) -> None:
    """Summed over free positions (no first one of a window) that are scored, over all scored."""
    assert p_LB is not None
    keep = (1 - config.merge_ratio) * config.window
    n = (config.window - 1) / (keep - 1)
    slope = config.ratio_weight * n / (n - 1) * (n * rate.wanted.item() - 1)
    scored = range(ids.shape[1] - 1)  # the last byte has nothing to predict
    free = [t for t in scored if t % config.window > 0]
    total = sum(p_LB[t, b].item() for b in range(len(ids)) for t in free)
    assert loss.item() == pytest.approx(slope * total / (len(ids) * len(scored)), rel=1e-10)


@pytest.mark.parametrize("recompute", ["block", "M"])
@pytest.mark.parametrize("kind", ["wcc", "adaptive window of the trunk", "hnet", "precomputed"])
def test_recomputation_gives_bit_equal_gradients_and_decides_once(
    kind: str, recompute: str
) -> None:
    config = merged_config("S(S(MLA)H)W", **KINDS[kind])
    ids = dna(2, 128)
    tracks = tracks_for(config, ids)
    plain = lively_model(config, ids).train()
    again = HyenaGLT(config, recompute=recompute).double().train()
    again.load_state_dict(plain.state_dict())
    found, decided, runs = [], [], []
    for model in (plain, again):
        calls: list[int] = []
        model.blocks[2].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        notes = record(model)
        for stage in range(2):
            stage_of(model, stage).rate.take()
        output = model(ids, ids, tracks=tracks)
        assert_lively(output)
        found.append(gradients(model, output.loss + output.ratio_loss))
        runs.append(len(calls))
        assert [len(passes) for passes in notes.values()] == [1, 1]
        decided.append([stage_of(model, stage).rate.take() for stage in range(2)])
        assert decided[-1][0][POSITIONS] == ids.numel()
        opened = notes[0][0].merge.chunks.opens_nWB.sum()
        assert decided[-1][0][OPENED] == opened
        assert decided[-1][1][POSITIONS] == opened
    assert runs == [1, 2]
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name
    for one, other in zip(*decided, strict=True):
        assert torch.equal(one, other)
