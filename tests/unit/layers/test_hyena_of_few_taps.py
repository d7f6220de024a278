"""`H` with explicit sizes of its filters: its equation in both forms, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from megatron_hyena.layers.hyena_order import HyenaOperator
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from tests.oracles import language_model
from tests.oracles.drawing import draw, small_config, small_mixer, weights

SIZES = [1, 2, 8, 9, 40, 100]


@pytest.mark.parametrize("length", [1, 41, 200])
def test_an_explicit_bank_in_both_forms(length: int) -> None:
    """128 taps where no size is given."""
    x, results = draw(length, 2, 8), []
    for fft in (True, False):
        config = small_config(
            "H", hyena_filter="genomic", motifs=("CG", "CANNTG"), use_fft_conv=fft
        )
        mixer = small_mixer(config)
        assert mixer.get_parameter("filters.0.filters").shape == (8, 128)
        expected = language_model.mixer("H", x.numpy(), weights(mixer), config)
        results.append(mixer(x))
        scale = max(1.0, float(np.abs(expected).max()))
        found = results[-1].detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 7, 41, 100])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fft", [True, False])
def test_it_equals_its_equation(size: int, length: int, fft: bool) -> None:
    config = small_config("H", hyena_filter_size=size, use_fft_conv=fft)
    mixer, x = small_mixer(config), draw(length, 2, 8, seed=5)
    expected = language_model.mixer("H", x.numpy(), weights(mixer), config)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(mixer(x).detach().numpy(), expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("fft", [True, False])
def test_nothing_is_seen_beyond_the_taps(fft: bool) -> None:
    """Each order reaches size - 1 back, the featurizer 2."""
    config = small_config("H", hyena_filter_size=5, use_fft_conv=fft, hyena_order=2)
    mixer, x = small_mixer(config), draw(40, 1, 8).requires_grad_()
    (slope,) = torch.autograd.grad(mixer(x)[30].sum(), x)
    seen = (slope.abs().amax((1, 2)) > 1e-12).nonzero().flatten()
    assert seen.tolist() == list(range(30 - 2 * 4 - 2, 31))


@pytest.mark.parametrize("fft", [True, False])
def test_gradients(fft: bool) -> None:
    config = small_config("H", hyena_filter_size=9, use_fft_conv=fft)
    mixer = small_mixer(config)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(mixer, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in mixer.parameters()]
    x = draw(30, 2, 8).requires_grad_()
    assert gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize("fft", [True, False])
def test_documents_alone_and_packed_are_equal(fft: bool) -> None:
    mixer = small_mixer(small_config("H", hyena_filter_size=9, use_fft_conv=fft))
    x = draw(30, 1, 8)
    ids = torch.tensor([[0] * 13 + [1] * 17])
    packed = mixer(x, Span.of_rank(0, 30, Documents.from_ids(ids)))
    alone = torch.cat([mixer(x[:13]), mixer(x[13:])])
    torch.testing.assert_close(packed, alone, rtol=1e-12, atol=1e-12)


def test_a_larger_filter_begins_with_the_smaller_one() -> None:
    small, large = (small_mixer(small_config("H", hyena_filter_size=n)) for n in (8, 200))
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: p.shape for n, p in large.named_parameters()
    }
    x = draw(8, 1, 8)
    torch.testing.assert_close(small(x), large(x), rtol=1e-12, atol=1e-12)


def test_flops_are_counted_by_the_form() -> None:
    """Per order: three transforms of length + taps, or two per tap; 8 for gate, skip and product;
    the featurizer's three taps of three streams."""
    direct = small_config("H", hyena_filter_size=32, use_fft_conv=False)
    assert HyenaOperator.mixing_flops(direct, 1000) == 8 * (2 * (2 * 32 + 8) + 18)
    assert HyenaOperator.mixing_flops(direct, 10) == 8 * (2 * (2 * 10 + 8) + 18)
    whole, few = small_config("H"), small_config("H", hyena_filter_size=24)
    length = 1000
    transforms = 3 * 2.5 * 1.024 * np.log2(1024)
    assert HyenaOperator.mixing_flops(few, length) == pytest.approx(8 * (2 * (transforms + 8) + 18))
    assert HyenaOperator.mixing_flops(few, length) < HyenaOperator.mixing_flops(whole, length)
