"""Operators to build by hand: the model's layers to the bit, causal, and what they refuse."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena import (
    FeedForward,
    GenomicHyenaOperator,
    HyenaBlock,
    HyenaGLTConfig,
    HyenaOperator,
    ResidualHyenaLayer,
    RotaryPositionalEmbedding,
    StripedHyenaOperator,
)
from megatron_hyena.errors import UserError
from megatron_hyena.layers.attention import Attention
from megatron_hyena.layers.genomic import GenomicHyenaOperator as GenomicOfLayers
from megatron_hyena.layers.hyena_order import HyenaOperator as HyenaOfLayers
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from tests.oracles import operators
from tests.oracles.drawing import disturb, draw, weights

D, LONGEST = 16, 64
SMALL = HyenaGLTConfig(
    pattern="[H]2", hidden_size=D, num_heads=4, hyena_filter_order=8, max_sequence_length=LONGEST
)


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


def made() -> dict[str, Any]:
    return {
        "order 1": HyenaOperator(D, LONGEST, order=1),
        "order 2": HyenaOperator(D, LONGEST),
        "order 3": HyenaOperator(D, LONGEST, order=3, filter_order=8),
        "genomic": GenomicHyenaOperator(D, LONGEST),
        "block": HyenaBlock(SMALL),
        "even": StripedHyenaOperator(D, LONGEST, num_heads=4),
        "odd": StripedHyenaOperator(D, LONGEST, num_heads=4, layer_idx=1),
        "residual": ResidualHyenaLayer(SMALL),
    }


def disturbed(name: str) -> Any:
    module = made()[name]
    disturb(module)
    return module


@pytest.mark.parametrize("name", made())
def test_batch_first_and_causal(name: str) -> None:
    """The Jacobian of a position is exactly 0 for later ones, and not for earlier ones."""
    module = disturbed(name).double()
    x = draw(2, 20, D).requires_grad_()
    y = module(x)
    assert y.shape == x.shape
    for t in (0, 7, 19):
        (slope,) = torch.autograd.grad(y[1, t].sum(), x, retain_graph=True)
        assert slope[0].abs().max() == 0  # another row
        assert slope[1, t + 1 :].abs().sum() < 1e-11 * slope.abs().max()
        assert slope[1, : t + 1].abs().amax(1).min() > 0


@pytest.mark.parametrize("name", [name for name in made() if name != "residual"])
def test_it_is_the_models_layer_to_the_bit(name: str) -> None:
    module = disturbed(name)
    kind = {"odd": Attention, "genomic": GenomicOfLayers}.get(name, HyenaOfLayers)
    layer = kind(module.config, DenseProvider())
    layer.load_state_dict(module.mixer.state_dict())
    x = torch.randn(2, 50, D)
    assert torch.equal(module(x), layer(x.transpose(0, 1)).transpose(0, 1))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_operator_equals_its_equation(order: int) -> None:
    operator = HyenaOperator(D, LONGEST, order=order, filter_order=8).double()
    disturb(operator)
    x = draw(2, 30, D)
    w = weights(operator.mixer)
    assert "gate" in w
    expected = operators.hyena_order(x.transpose(0, 1).numpy(), w, order, LONGEST)
    found = operator(x).detach().transpose(0, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_stream_of_the_operator_trains(order: int) -> None:
    operator = HyenaOperator(D, LONGEST, order=order)
    operator(torch.randn(2, 30, D)).square().sum().backward()
    for name, parameter in operator.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax() > 0, name


@pytest.mark.parametrize(
    ("layer_idx", "kind"), [(0, HyenaOfLayers), (1, Attention), (7, Attention)]
)
def test_a_striped_layer_builds_only_the_operator_it_needs(layer_idx: int, kind: type) -> None:
    layer = StripedHyenaOperator(D, LONGEST, num_heads=4, layer_idx=layer_idx)
    assert type(layer.mixer) is kind
    alone = kind(layer.config, DenseProvider())
    assert sum(p.numel() for p in layer.parameters()) == sum(p.numel() for p in alone.parameters())
    assert layer.layer_idx == layer_idx


def test_weights_follow_torchs_own_generator() -> None:
    def drawn(seed: int) -> list[HyenaOperator]:
        torch.manual_seed(seed)
        return [HyenaOperator(D, LONGEST) for _ in range(2)]

    x = torch.randn(1, 9, D)
    (a, b), (c, _), (d, _) = drawn(1), drawn(1), drawn(2)
    assert torch.equal(a(x), c(x))
    for other in (b, d):
        assert not torch.allclose(a(x), other(x))


def test_half_precision_comes_back_as_it_was() -> None:
    operator = HyenaOperator(D, LONGEST)
    x = torch.randn(1, 20, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert operator(x.bfloat16()).dtype == torch.bfloat16
    with torch.no_grad():
        half = operator(x.bfloat16().float())
    assert half.dtype == torch.float32


def test_conservation_is_read_where_it_is_known() -> None:
    operator = disturbed("genomic")
    layer = GenomicOfLayers(operator.config, DenseProvider())
    layer.load_state_dict(operator.mixer.state_dict())
    x, scores = torch.randn(2, 30, D), torch.randn(2, 30)
    scores[:, 10:20] = math.nan
    expected = layer(x.transpose(0, 1), Span(0, 30, tracks={"conservation": scores}))
    found, plain = operator(x, scores), operator(x)
    assert torch.equal(found, expected.transpose(0, 1))
    assert torch.equal(found[:, 10:20], plain[:, 10:20])
    assert not torch.allclose(found[:, :10], plain[:, :10])
    assert torch.equal(operator(x, torch.full((2, 30), math.nan)), plain)
    with pytest.raises(UserError, match="one score for each byte"):
        operator(x, scores[:, 1:])


def test_motifs_of_ones_own() -> None:
    operator = GenomicHyenaOperator(D, LONGEST, motif_length=4, motifs=["GATC", "CG"])
    assert operator.config.motifs == ("GATC", "CG")
    assert operator.mixer.motif.taps.shape == (D, 4)
    with pytest.raises(UserError, match="TATAWAW of 7 letters"):
        GenomicHyenaOperator(D, LONGEST, motif_length=4)


def test_an_operator_with_a_bank_has_no_longest_sequence() -> None:
    config = HyenaGLTConfig(
        hidden_size=D, num_heads=4, hyena_filter="genomic", max_sequence_length=LONGEST
    )
    x = torch.randn(1, 300, D)
    assert HyenaBlock(config)(x).shape == x.shape
    assert ResidualHyenaLayer(config)(x).shape == x.shape


def test_the_transform_is_linear_not_circular() -> None:
    u, taps = draw(2, 12, 3), draw(3, 12, seed=1)
    expected = np.zeros((2, 12, 3))
    for t, k in itertools.product(range(12), range(12)):
        if k <= t:
            expected[:, t] += taps[:, k].numpy() * u[:, t - k].numpy()
    np.testing.assert_allclose(HyenaOperator.fft_conv(u, taps).numpy(), expected, atol=1e-12)


def test_a_longer_sequence_than_the_filters_is_refused() -> None:
    for name in ("order 2", "block", "even", "residual"):
        with pytest.raises(UserError, match="65 positions exceeds l_max = 64"):
            made()[name](torch.randn(1, 65, D))
    assert made()["odd"](torch.randn(1, 65, D)).shape == (1, 65, D)


@pytest.mark.parametrize("x", [torch.randn(1, 5, 3), torch.randn(5, D)])
def test_states_of_another_shape_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"are not \[batch, length, 16\]"):
        HyenaOperator(D, LONGEST)(x)


def test_ids_are_refused_as_states() -> None:
    with pytest.raises(UserError, match="embed the ids first"):
        HyenaOperator(D, LONGEST)(torch.zeros(1, 5, D, dtype=torch.int64))


@pytest.mark.parametrize(
    "build",
    [
        lambda: HyenaOperator(D, LONGEST, order=0),
        lambda: HyenaOperator(0, LONGEST),
        lambda: HyenaOperator(D, 0),
        lambda: StripedHyenaOperator(D, LONGEST, num_heads=3, layer_idx=1),
        lambda: FeedForward(D, -1),
        lambda: RotaryPositionalEmbedding(5),
    ],
)
def test_sizes_that_cannot_be(build) -> None:
    with pytest.raises(UserError):
        build()


def test_what_a_fine_tuned_sketch_would_assign_is_read_only() -> None:
    block = HyenaBlock(SMALL)
    assert block.causal
    for name, value in (("causal", False), ("filter_size", 3)):
        with pytest.raises(AttributeError):
            setattr(block, name, value)
