"""Convolutions against explicit loops: values, gradients, linearity in time, precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from megatron_hyena.ops.fft_conv import fft_conv, fft_length
from megatron_hyena.ops.fir import causal_fir, compute_dtype, fir_chunk
from megatron_hyena.ops.modal import modal_conv, modal_filter
from tests.oracles.drawing import draw
from tests.oracles.operators import convolve, correlate, modal_taps, spread_groups

LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65, 200]


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).requires_grad_()


def modes(channels: int, count: int, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """log rates of 2 to 400 positions, residues, skips."""
    drawn = (
        draw(channels, count, seed=1).mul(1.3).sub(3.0),
        draw(channels, count, seed=2),
        draw(channels, seed=3),
    )
    log_rate, residue, skip = (x.requires_grad_(grad) for x in drawn)
    return log_rate, residue, skip


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("taps", [1, 3, 7, 17, 18, 128])
def test_causal_fir_is_the_convolution(length: int, taps: int) -> None:
    z, w = draw(6, 2, length), draw(3, taps, seed=1)
    expected = convolve(z.numpy(), spread_groups(w.numpy(), 6))
    np.testing.assert_allclose(causal_fir(z, w).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_flipped_taps_are_the_cross_correlation(length: int) -> None:
    z, w = draw(4, 2, length), draw(4, 7, seed=1)
    expected = correlate(z.numpy(), w.numpy())
    np.testing.assert_allclose(causal_fir(z, w.flip(1)).numpy(), expected, rtol=0, atol=1e-13)
    if length > 1:
        assert not np.allclose(causal_fir(z, w).numpy(), expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk", [4, 64])
def test_modal_conv_is_the_convolution_with_its_filter(length: int, chunk: int) -> None:
    z, (log_rate, residue, skip) = draw(4, 2, length), modes(4, 5)
    taps = modal_taps(log_rate.numpy(), residue.numpy(), length)
    expected = convolve(z.numpy(), taps) + skip.numpy()[:, None, None] * z.numpy()
    found = modal_conv(z, log_rate, residue, skip, chunk)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(modal_filter(log_rate, residue, length).numpy(), taps, atol=1e-13)


def turning(channels: int, count: int, grad: bool = False) -> tuple[Tensor, Tensor]:
    """Of complex modes: radians per position, imaginary parts of the residues."""
    phase, imaginary = draw(channels, count, seed=4), draw(channels, count)
    return phase.requires_grad_(grad), imaginary.requires_grad_(grad)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk", [4, 64])
def test_complex_modes_are_the_convolution_with_their_filter(length: int, chunk: int) -> None:
    z, (log_rate, residue, skip), more = draw(4, 2, length), modes(4, 5), turning(4, 5)
    parts = [x.numpy() for x in more]
    taps = modal_taps(log_rate.numpy(), residue.numpy(), length, *parts)
    expected = convolve(z.numpy(), taps) + skip.numpy()[:, None, None] * z.numpy()
    found = modal_conv(z, log_rate, residue, skip, chunk, turning=more)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-11)
    filtered = modal_filter(log_rate, residue, length, more)
    np.testing.assert_allclose(filtered.numpy(), taps, atol=1e-13)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("taps", [1, 5, 300])
def test_fft_conv_is_the_convolution(length: int, taps: int) -> None:
    z, w = draw(4, 2, length), draw(4, taps, seed=1)
    expected = convolve(z.numpy(), w.numpy())
    np.testing.assert_allclose(fft_conv(z, w).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("taps", [1, 3, 17])
def test_causal_fir_gradients(length: int, taps: int) -> None:
    z, w = leaf(2, 2, length), leaf(1, taps, seed=1)
    assert gradcheck(causal_fir, (z, w))


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 14])
def test_modal_conv_gradients(length: int) -> None:
    z, parameters = leaf(2, 2, length), modes(2, 3, grad=True)
    assert gradcheck(partial(modal_conv, chunk=4), (z, *parameters))


@pytest.mark.parametrize("length", [1, 4, 13])
def test_gradients_of_complex_modes(length: int) -> None:
    def run(z: Tensor, rate: Tensor, residue: Tensor, skip: Tensor, *more: Tensor) -> Tensor:
        return modal_conv(z, rate, residue, skip, 4, turning=(more[0], more[1]))

    given = (*modes(2, 3, grad=True), *turning(2, 3, grad=True))
    assert gradcheck(run, (leaf(2, 2, length), *given))


@pytest.mark.parametrize(("length", "taps"), [(1, 1), (2, 5), (9, 4), (12, 12)])
def test_fft_conv_gradients(length: int, taps: int) -> None:
    assert gradcheck(fft_conv, (leaf(2, 2, length), leaf(2, taps, seed=1)))


def test_gradients_of_long_inputs_equal_those_of_a_dense_matrix() -> None:
    """Several chunks and batch rows, against autograd through an explicit [L, L] product."""
    length, (log_rate, residue, skip) = 150, modes(3, 4, grad=True)
    z, weight = leaf(3, 2, length), draw(3, 2, length, seed=9)
    inputs = (z, log_rate, residue, skip)
    found = torch.autograd.grad((modal_conv(*inputs) * weight).sum(), inputs)
    taps = modal_filter(log_rate, residue, length)
    lag = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    matrix = torch.where(lag >= 0, taps[:, lag.clamp(min=0)], 0.0)
    dense = torch.einsum("dts,dbs->dbt", matrix, z) + skip[:, None, None] * z
    expected = torch.autograd.grad((dense * weight).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


OPERATORS = {
    "fir": lambda z: causal_fir(z, draw(z.shape[0], 20, seed=1)),
    "modal": lambda z: modal_conv(z, *modes(z.shape[0], 4)),
    "fft": lambda z: fft_conv(z, draw(z.shape[0], z.shape[2], seed=1)),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("length", [1, 16, 64, 100, 128])
def test_convolution_is_linear_in_time_never_circular(name: str, length: int) -> None:
    """An impulse at the last position reaches no other one."""
    z = torch.zeros(3, 1, length, dtype=torch.float64)
    z[..., -1] = 1.0
    y = OPERATORS[name](z)
    assert y[..., :-1].abs().sum() <= (1e-12 if name == "fft" else 0.0)
    assert y[..., -1].abs().min() > 1e-3


@pytest.mark.parametrize("least", [1, 2, 7, 8, 11, 1025, 2 * 65536 - 1, 99991])
def test_fft_length_is_the_smallest_even_smooth_number(least: int) -> None:
    def smooth(n: int) -> bool:
        for prime in (2, 3, 5, 7):
            while n % prime == 0:
                n //= prime
        return n == 1

    found = fft_length(least)
    assert found >= least
    assert found == next(n for n in range(least, 4 * least + 4) if n % 2 == 0 and smooth(n))


@pytest.mark.parametrize("taps", [1, 2, 3, 7, 16, 17, 18, 33, 34, 128, 129])
def test_fir_chunk_is_long_enough_and_not_longer(taps: int) -> None:
    chunk = fir_chunk(taps)
    assert taps <= chunk + 1
    assert chunk == 16 or taps > chunk // 2 + 1


def low_precision_cases() -> dict[str, tuple[torch.Tensor, ...]]:
    z = draw(6, 1, 150).to(torch.bfloat16)
    log_rate, residue, skip = (p.float() for p in modes(6, 4))
    return {
        "fir": (z, draw(3, 128, seed=1).float()),
        "modal": (z, log_rate, residue, skip),
        "fft": (z, draw(6, 150, seed=1).float()),
    }


@pytest.mark.parametrize("name", ["fir", "modal", "fft"])
def test_bf16_input_is_convolved_in_fp32_also_under_autocast(name: str) -> None:
    """The result is bit for bit that of the same numbers in fp32; so are the gradients."""
    ops: dict[str, Callable[..., Tensor]] = {
        "fir": causal_fir,
        "modal": modal_conv,
        "fft": fft_conv,
    }
    op = ops[name]
    z, *parameters = low_precision_cases()[name]
    wide = [z.float().requires_grad_(), *(p.clone().requires_grad_() for p in parameters)]
    expected = op(*wide)
    expected.square().sum().backward()
    low = [z.clone().requires_grad_(), *(p.clone().requires_grad_() for p in parameters)]
    with torch.autocast("cpu", torch.bfloat16):
        found = op(*low)
        found.square().sum().backward()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    for mine, theirs in zip(low[1:], wide[1:], strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert mine.grad.dtype == torch.float32
        assert torch.equal(mine.grad, theirs.grad)


def test_compute_dtype() -> None:
    kinds = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    found = [compute_dtype(torch.empty(0, dtype=k)) for k in kinds]
    assert found == [torch.float32, torch.float32, torch.float32, torch.float64]
