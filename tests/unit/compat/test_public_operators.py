"""Operators to build by hand: the model's layers to the bit, causal, and what they refuse."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import megatron_hyena
from megatron_hyena import (
    FeedForward,
    GenomicHyenaFilter,
    GenomicHyenaOperator,
    HyenaBlock,
    HyenaFilter,
    HyenaGLTConfig,
    HyenaOperator,
    ResidualHyenaLayer,
    RotaryPositionalEmbedding,
    StripedHyenaOperator,
)
from megatron_hyena.compat.operators import operator_config
from megatron_hyena.errors import UserError
from megatron_hyena.layers.attention import Attention
from megatron_hyena.layers.filters import GenomicHyenaFilter as BankOfLayers
from megatron_hyena.layers.genomic import GenomicHyenaOperator as GenomicOfLayers
from megatron_hyena.layers.hyena_order import HyenaFilter as FilterOfLayers
from megatron_hyena.layers.hyena_order import HyenaOperator as HyenaOfLayers
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.hyena_glt import Block
from tests.oracles import language_model, operators
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


def test_a_residual_layer_is_the_models_block_to_the_bit() -> None:
    layer = disturbed("residual")
    block = Block("H", SMALL, DenseProvider())
    block.load_state_dict(
        {name.replace(".layer.", "."): p for name, p in layer.block.state_dict().items()}
    )
    x = torch.randn(2, 50, D)
    expected = block(x.transpose(0, 1), Span.alone(50)).transpose(0, 1)
    assert torch.equal(layer(x), expected)


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


def test_filters_are_those_of_the_layer_and_prefixes_of_themselves() -> None:
    made_filter = HyenaFilter(D, filter_order=8, l_max=LONGEST)
    layer = FilterOfLayers(operator_config(D, LONGEST, 1, 8), DenseProvider())
    layer.load_state_dict(made_filter.network.state_dict())
    taps = made_filter(LONGEST)
    assert taps.shape == (D, LONGEST) == made_filter.filters.shape
    assert made_filter.filter_size == LONGEST
    assert torch.equal(taps, layer(LONGEST, torch.float32))
    torch.testing.assert_close(made_filter(20), taps[:, :20])
    with pytest.raises(UserError, match="64 taps has no 65"):
        made_filter(65)
    expected = operators.implicit_taps(weights(layer), 30, LONGEST)
    np.testing.assert_allclose(made_filter(30).detach().numpy(), expected, atol=1e-5)


def test_a_filter_of_a_configuration() -> None:
    config = HyenaGLTConfig(hidden_size=D, num_heads=4, hyena_filter_size=10)
    bank = HyenaFilter(config)
    assert bank.filters.shape == (D, 10) == (D, bank.filter_size)
    assert HyenaBlock(config).filter_size == 10


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


def test_a_bank_of_motifs() -> None:
    config = HyenaGLTConfig(hidden_size=D, num_heads=4, hyena_filter_size=20)
    bank = GenomicHyenaFilter(config)
    assert bank.filter_size == 20
    layer = BankOfLayers(config, DenseProvider())
    layer.load_state_dict(bank.network.state_dict())
    assert torch.equal(bank.filters, layer.filters)
    assert torch.equal(bank(7), layer.filters[:, :7])
    assert GenomicHyenaFilter(HyenaGLTConfig(hidden_size=D, num_heads=4)).filters.shape == (D, 128)
    with pytest.raises(UserError, match="20 taps has no 21"):
        bank(21)


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


def test_dropout_acts_on_both_branches_in_training_alone() -> None:
    layer = ResidualHyenaLayer(SMALL, dropout=1.0)
    disturb(layer)
    x = torch.randn(1, 9, D)
    assert torch.equal(layer.train()(x), x)
    assert not torch.allclose(layer.eval()(x), x)
    without = HyenaGLTConfig(pattern="H", hidden_size=D, num_heads=4, ffn_hidden_size=-1)
    assert ResidualHyenaLayer(without, dropout=0.5)(x).shape == x.shape


def test_feed_forward_equals_its_equation() -> None:
    mlp = FeedForward(D, 24).double()
    x = draw(2, 5, D)
    expected = language_model.gated_mlp(x.numpy(), weights(mlp.mlp), "gelu")
    np.testing.assert_allclose(mlp(x).detach().numpy(), expected, atol=1e-12)
    assert FeedForward(D).mlp.output.shape == (D, 64)


def test_rotary_positions_turn_and_do_not_stretch() -> None:
    rope, x = RotaryPositionalEmbedding(8, base=100.0), draw(2, 3, 7, 8)
    y = rope(x, start=5)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    for t in range(7):
        expected = operators.rotated(x[1, 2, t].numpy(), 5 + t, 100.0)
        np.testing.assert_allclose(y[1, 2, t].numpy(), expected, atol=1e-12)
    with pytest.raises(UserError, match="heads of 6"):
        rope(draw(2, 6))


def test_every_public_name_can_be_had() -> None:
    for name in megatron_hyena.__all__:
        assert getattr(megatron_hyena, name) is not None
        assert name in dir(megatron_hyena)
    assert megatron_hyena.HyenaGLTModel is megatron_hyena.HyenaGLT
    assert megatron_hyena.StrippedHyenaOperator is StripedHyenaOperator
    with pytest.raises(AttributeError, match="NoSuchName"):
        megatron_hyena.NoSuchName  # noqa: B018


def test_the_package_starts_without_torch_and_its_names_without_the_engine() -> None:
    program = (
        "import sys, megatron_hyena as m\n"
        "assert 'torch' not in sys.modules\n"
        "m.GenomicTokenizer; assert 'torch' not in sys.modules\n"
        "for name in m.__all__: getattr(m, name)\n"
        "assert not {'deepspeed', 'megatron'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_page_names_what_there_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "seeds.md").read_text(encoding="utf-8")
    section = page.split("## Classes and functions\n")[1].split("\nWhat the sketches")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(megatron_hyena.__all__) - {"__version__"}


@pytest.mark.parametrize("number", [0, 1])
def test_examples_of_the_page_run(number: int) -> None:
    page = (Path(__file__).parents[3] / "docs" / "seeds.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[number], "docs/seeds.md", "exec"), {})
