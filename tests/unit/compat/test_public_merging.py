"""`DynamicMergingLayer` and `AdaptiveMergingLayer` by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_hyena import AdaptiveMergingLayer, DynamicMergingLayer
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.rate import POSITIONS

X = torch.randn(3, 300, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("kind", [DynamicMergingLayer, AdaptiveMergingLayer])
def test_a_calibrated_layer_removes_the_asked_fraction(
    kind: type[DynamicMergingLayer], ratio: float
) -> None:
    layer = kind(24, ratio)
    layer.calibrate(X)
    layer.train()
    _, merge = layer.merge(X)
    figures = layer.after_step()
    assert 1 - figures["kept"] == pytest.approx(ratio, abs=0.03)
    assert int(merge.chunks.opens_nWB.flatten(0, 1)[:300].sum()) == round(figures["kept"] * 900)


def test_each_position_reads_the_slot_of_its_latest_chunk() -> None:
    layer = DynamicMergingLayer(24, merge_fn="select").eval()
    layer.calibrate(X)
    merged, indices = layer(X)
    assert merged.shape[0] == 3
    assert indices.shape == (3, 300)
    opens = layer.merge(X)[1].chunks.opens_nWB.flatten(0, 1).t()
    for row in range(3):
        for position in range(300):
            opening = max(t for t in range(position + 1) if opens[row, t])
            assert torch.equal(merged[row, indices[row, position]], X[row, opening])


def test_the_exit_returns_every_position_and_trains_the_router() -> None:
    layer = DynamicMergingLayer(24)
    layer.calibrate(X)
    merged, merge = layer.merge(X)
    torch.nn.init.normal_(layer.stage.skip)
    restored = layer.unmerge(torch.tanh(merged), merge, X)
    assert restored.shape == X.shape
    restored.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.norm() > 0, name


def test_nothing_before_a_changed_position_changes() -> None:
    layer = DynamicMergingLayer(24).double().eval()
    changed = X.double().clone()
    changed[:, 137] += 1
    outputs = []
    for x in (X.double(), changed):
        merged, merge = layer.merge(x)
        outputs.append(layer.unmerge(merged, merge, x))
    assert torch.equal(outputs[0][:, :137], outputs[1][:, :137])
    assert not torch.equal(outputs[0][:, 137], outputs[1][:, 137])


FIELDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mean": {"merge_fn": "mean", "similarity": "cosine"},
    "static": {"merger": "static"},
    "adaptive": {"adaptive": True, "complexity": "window"},
}


@pytest.mark.parametrize("length", [1, 5, 16, 37, 300])
@pytest.mark.parametrize("kind", FIELDS)
def test_slots_behind_the_last_position_are_empty(kind: str, length: int) -> None:
    """The padding of the last window opens no chunk and counts nowhere."""
    layer = DynamicMergingLayer(24, window=16, **FIELDS[kind]).double().train()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = X.double()[:, :length]
    merged, merge = layer.merge(x)
    opens = merge.chunks.opens_nWB.flatten(0, 1)
    assert not opens[length:].any()
    assert torch.equal((merged != 0).any(-1).sum(1), opens.sum(0))
    assert int(layer.stage.rate.counts[POSITIONS]) == 3 * length
    whole, indices = layer(X.double())
    assert torch.equal(layer(x)[1], indices[:, :length])
    for row in range(3):
        for slot in indices[row, :length].unique():
            torch.testing.assert_close(merged[row, slot], whole[row, slot], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (AdaptiveMergingLayer, {"complexity": "kmer"}, ["complexity='kmer'", "bytes", "window"]),
        (DynamicMergingLayer, {"router_input": "trunk"}, ["router_input='trunk'", "encoder"]),
        (DynamicMergingLayer, {"merger": "precomputed"}, ["merger='precomputed'", "`boundaries`"]),
        (DynamicMergingLayer, {"pattern": "S(M)S"}, ["pattern='S(M)S'", "the merged vectors"]),
        (DynamicMergingLayer, {"hidden_size": 8}, ["hidden_size=8", "d_model"]),
        (DynamicMergingLayer, {"num_heads": 8}, ["num_heads=8", "takes adaptive, causal"]),
        (DynamicMergingLayer, {"windows": 8}, ["windows=8", "similarity, slots, smoothing"]),
        (AdaptiveMergingLayer, {"merge_ratio": 0.5}, ["merge_ratio=0.5", "base_merge_ratio"]),
        (AdaptiveMergingLayer, {"adaptive": False}, ["adaptive=False", "DynamicMergingLayer"]),
    ],
)
def test_what_a_layer_by_itself_cannot_do_is_refused_at_once(
    kind: type[DynamicMergingLayer], fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        kind(24, **fields)
    for word in words:
        assert word in str(caught.value)


def test_the_router_learns_by_the_exit_and_not_by_the_merged_vectors_alone() -> None:
    layer = DynamicMergingLayer(24)
    assert layer.stage.router is not None
    parameters = list(layer.stage.router.similarity.parameters())
    merged, merge = layer.merge(X)
    alone = torch.autograd.grad(
        merged.square().sum(), parameters, allow_unused=True, retain_graph=True
    )
    assert all(gradient is None for gradient in alone)
    restored = layer.unmerge(torch.tanh(merged), merge, X).square().sum()
    assert all(g.norm() > 0 for g in torch.autograd.grad(restored, parameters))


def test_other_widths_are_refused() -> None:
    with pytest.raises(UserError):
        DynamicMergingLayer(16)(X)
