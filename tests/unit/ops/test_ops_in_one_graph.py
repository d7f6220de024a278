"""Operators in a graph of `torch.compile` are the operators outside of it, with documents too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.ops.attention import causal_attention
from megatron_hyena.ops.attention_both import Keys, attention_both
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fft_conv import fft_conv
from megatron_hyena.ops.fir import causal_fir
from megatron_hyena.ops.linear import from_channel_first, to_channel_first
from megatron_hyena.ops.modal import modal_conv
from megatron_hyena.ops.opaque import opaque
from tests.oracles.compiled import assert_exact, assert_one_graph, compiled
from tests.oracles.drawing import draw

BATCH, CHANNELS, LENGTH = 2, 4, 150
Operator = Callable[[list[Tensor], Documents | None], Tensor]


def products(given: list[Tensor], _: Documents | None) -> Tensor:
    x, there, back = given
    return from_channel_first(to_channel_first(x, there), back)


def attention(given: list[Tensor], documents: Documents | None) -> Tensor:
    q, k, v = given
    return causal_attention(q, k, v, documents=documents)


def window_attention(given: list[Tensor], documents: Documents | None) -> Tensor:
    q, k, v = given
    present = torch.arange(LENGTH).expand(BATCH, -1) % 7 != 3
    return causal_attention(q, k, v, 24, documents, present)


def attention_to_both_sides(given: list[Tensor], documents: Documents | None) -> Tensor:
    q, k, v = given
    return attention_both(q, Keys(k, v, documents=documents), 24)


Z = (CHANNELS, BATCH, LENGTH)
QKV: list[tuple[int, ...]] = [(BATCH, 2, LENGTH, 8)] * 3
OPERATORS: dict[str, tuple[Operator, list[tuple[int, ...]]]] = {
    "products": (products, [(LENGTH, BATCH, 6), (CHANNELS, 6), (6, CHANNELS)]),
    "7 taps": (lambda t, d: causal_fir(t[0], t[1], d), [Z, (2, 7)]),
    "24 taps": (lambda t, d: causal_fir(t[0], t[1], d), [Z, (2, 24)]),
    "FFT": (lambda t, d: fft_conv(t[0], t[1], d), [Z, (CHANNELS, LENGTH)]),
    "modal": (
        lambda t, d: modal_conv(t[0], t[1] - 3, t[2], t[3], chunk=4, documents=d),
        [Z, (CHANNELS, 3), (CHANNELS, 3), (CHANNELS,)],
    ),
    "attention": (attention, QKV),
    "window attention": (window_attention, QKV),
    "attention to both sides": (attention_to_both_sides, QKV),
}


def document_numbers(seed: int) -> Tensor:
    """As many documents as the seed will have it, some of one position."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(BATCH, LENGTH, generator=generator) < 0.02 * (seed + 1)).long().cumsum(1)


# Without documents they stand in the graph of whole models as well: test_one_graph.
@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", OPERATORS)
def test_values_and_gradients_are_those_outside(name: str, packed: bool) -> None:
    """38 chunks of the modal filter: its carries are summed in another way in a graph."""
    operator, shapes = OPERATORS[name]
    given = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]

    def run(numbers: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        y = operator(given, Documents.from_ids(numbers) if packed else None)
        return (y * weights).sum(), y

    like = operator(given, None)
    inputs = [(document_numbers(i), draw(*like.shape, seed=9 + i)) for i in range(3)]
    assert_one_graph(run, given, inputs)


def test_a_chunk_more_than_a_power_of_two() -> None:
    """1, 2, 3, 4 and 5 chunks: the last step of the doubling is cut short, or not needed."""
    for length in (3, 8, 12, 16, 17):
        z, rate, residue, skip = draw(2, 1, length), draw(2, 3), draw(2, 3), draw(2)
        run, _ = compiled(modal_conv)
        assert_exact(run(z, rate, residue, skip, 4), modal_conv(z, rate, residue, skip, 4))


def test_products_run_as_autocast_says_in_a_graph_too() -> None:
    given = [draw(40, 2, 6).float(), draw(4, 6).float(), draw(6, 4).float()]
    run, _ = compiled(products)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = run(given, None), products(given, None)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["24 taps", "modal", "FFT"])
def test_convolutions_stay_in_fp32_under_autocast_backwards_too(name: str) -> None:
    """bf16 products would be off by 1e-3; fp32 in another order is off by 1e-6."""
    operator, shapes = OPERATORS[name]
    given = [draw(*s, seed=i).float().requires_grad_() for i, s in enumerate(shapes)]
    run, _ = compiled(lambda: operator(given, None).square().sum())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = run(), operator(given, None).square().sum()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for g, r in zip(
        torch.autograd.grad(ours, given), torch.autograd.grad(theirs, given), strict=True
    ):
        torch.testing.assert_close(g, r, rtol=1e-5, atol=1e-5 * float(r.abs().max()))


def test_a_document_inside_a_window_is_refused_from_within_a_graph() -> None:
    def run(numbers: Tensor) -> Tensor:
        return Documents.from_ids(numbers).check_starts(8).position_BL * 1

    in_graph, graphs = compiled(run)
    good = torch.arange(32).expand(2, -1) // 16
    assert torch.equal(in_graph(good), run(good))
    bad = torch.cat([good[:1], torch.arange(32)[None] // 5])
    with pytest.raises(UserError, match=r"position 5 of row 1 .* multiples of 8"):
        in_graph(bad)
    assert len(graphs.sizes) == 1


def test_a_name_taken_is_no_obstacle() -> None:
    """A module may be loaded twice, as an exported model's is beside the package's own."""

    def times(factor: float) -> Callable[[Sequence[Tensor], Sequence[int]], Tensor]:
        return lambda given, _: factor * given[0]

    twice, thrice = opaque("tested_twice", times(2.0)), opaque("tested_twice", times(3.0))
    x = draw(5).requires_grad_()
    y = twice([x], []) + thrice([x], [])
    torch.testing.assert_close(y, 5 * x)
    (gradient,) = torch.autograd.grad(twice([x], []).sum() + thrice([x], []).sum(), [x])
    torch.testing.assert_close(gradient, torch.full_like(x, 5.0))
