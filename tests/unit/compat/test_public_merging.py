"""`DynamicMergingLayer` and `AdaptiveMergingLayer` by themselves."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena import AdaptiveMergingLayer, DynamicMergingLayer
from megatron_hyena.errors import UserError

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


def test_other_widths_are_refused() -> None:
    with pytest.raises(UserError):
        DynamicMergingLayer(16)(X)
