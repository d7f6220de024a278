"""Every operator on packed rows: each document as if it were alone, forward and backward.

Two oracles: the operator itself on each document by itself, and the equation in explicit loops.
What lies before a stretch of a row (keys, carries) is tried by cutting rows in uneven stretches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck

from megatron_hyena.ops.attention import causal_attention
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fft_conv import fft_conv
from megatron_hyena.ops.fir import causal_fir
from megatron_hyena.ops.modal import modal_conv
from tests.oracles.documents import counted, drawn, layouts, numbered, runs
from tests.oracles.drawing import draw
from tests.oracles.operators import convolve, modal_taps, spread_groups

CHANNELS, LENGTH = 4, 70


def every_layout_of(length: int) -> list[Any]:
    """The second and third drawn ones marked slow."""
    slow = {name: (pytest.mark.slow,) for name in ("drawn 1", "drawn 2")}
    return [
        pytest.param(ids, id=name, marks=slow.get(name, ()))
        for name, ids in layouts(length).items()
    ]


LAYOUTS = every_layout_of(LENGTH)
every_layout = pytest.mark.parametrize("ids", LAYOUTS)
Convolution = Callable[..., Tensor]


def modes() -> tuple[Tensor, Tensor, Tensor]:
    """log rates of 2 to 400 positions, residues, skips."""
    log_rate = draw(CHANNELS, 3, seed=1).mul(1.3).sub(3.0)
    return log_rate, draw(CHANNELS, 3, seed=2), draw(CHANNELS, seed=3)


def free_taps(count: int) -> tuple[Tensor, ...]:
    return (draw(CHANNELS, count, seed=1),)


def grouped_taps(count: int) -> tuple[Tensor, ...]:
    return (draw(2, count, seed=1),)


def written_out(z: Tensor, *parameters: Tensor) -> np.ndarray:
    """The convolution of one document by loops: with taps [G, K], or with modes and a skip."""
    if len(parameters) == 1:
        return convolve(z.numpy(), spread_groups(parameters[0].numpy(), CHANNELS))
    log_rate, residue, skip = (p.numpy() for p in parameters)
    taps = modal_taps(log_rate, residue, z.shape[-1])
    return convolve(z.numpy(), taps) + skip[:, None, None] * z.numpy()


CONVOLUTIONS: dict[str, tuple[Convolution, tuple[Tensor, ...]]] = {
    **{f"fir {k}": (causal_fir, grouped_taps(k)) for k in (1, 3, 8, 9, 20, 128)},
    "modal 4": (partial(modal_conv, chunk=4), modes()),
    "modal 64": (modal_conv, modes()),
    **{f"fft {k}": (fft_conv, free_taps(k)) for k in (1, 5, LENGTH)},
}
every_convolution = pytest.mark.parametrize("name", CONVOLUTIONS)


def gradients_close(found: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Of two scalars, for each of the inputs; their graphs are kept."""
    mine, theirs = (grad(y, inputs, retain_graph=True) for y in (found, expected))
    for index, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        close(one, other, f"gradient {index}")


def close(found: Tensor, expected: Tensor, what: str = "") -> None:
    """To 1e-12 of the largest number."""
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert error <= 1e-12, f"{what}: {error:.1e}"


@every_layout
@every_convolution
def test_each_document_is_convolved_as_the_equation_says(name: str, ids: Tensor) -> None:
    convolution, parameters = CONVOLUTIONS[name]
    z = draw(CHANNELS, *ids.shape)
    found = convolution(z, *parameters, documents=Documents.from_ids(ids))
    assert found.shape == z.shape
    for row, start, stop in runs(ids):
        alone = written_out(z[:, row : row + 1, start:stop], *parameters)
        close(found[:, row : row + 1, start:stop], torch.from_numpy(alone))


@every_layout
@every_convolution
def test_gradients_are_the_sum_over_documents_alone(name: str, ids: Tensor) -> None:
    """Of the input each its own; of the parameters together."""
    convolution, given = CONVOLUTIONS[name]
    z, weight = draw(CHANNELS, *ids.shape).requires_grad_(), draw(CHANNELS, *ids.shape, seed=9)
    inputs = (z, *(p.clone().requires_grad_() for p in given))
    packed = convolution(*inputs, documents=Documents.from_ids(ids))
    total = torch.zeros((), dtype=torch.float64)
    for row, start, stop in runs(ids):
        here = (slice(None), slice(row, row + 1), slice(start, stop))
        alone = convolution(z[here], *inputs[1:])
        close(packed[here], alone)
        total = total + (alone * weight[here]).sum()
    gradients_close((packed * weight).sum(), total, inputs)


@pytest.mark.parametrize("name", ["fir 3", "fir 20", "modal 4", "fft 5"])
def test_gradients_on_documents_are_the_slopes(name: str) -> None:
    convolution, given = CONVOLUTIONS[name]
    documents = Documents.from_ids(numbered(9, [[1, 5, 8], [6]]))
    inputs = (draw(CHANNELS, 2, 9).requires_grad_(), *(p.clone().requires_grad_() for p in given))
    assert gradcheck(partial(convolution, documents=documents), inputs)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16],
)
@every_convolution
def test_no_document_touches_another(name: str, dtype: torch.dtype) -> None:
    """To the bit, whatever is written into the others."""
    convolution, given = CONVOLUTIONS[name]
    parameters = [p.to(torch.float32 if dtype == torch.bfloat16 else dtype) for p in given]
    ids = drawn(3, LENGTH, seed=1)
    documents, z = Documents.from_ids(ids), draw(CHANNELS, *ids.shape).to(dtype)
    before = convolution(z, *parameters, documents=documents)
    for row, start, stop in runs(ids):
        other = z.clone()
        other[:, row, start:stop] = 1e6 * draw(CHANNELS, stop - start, seed=7).to(dtype)
        same = torch.ones(ids.shape, dtype=torch.bool)
        same[row, start:stop] = False
        after = convolution(other, *parameters, documents=documents)
        assert torch.equal(after[:, same], before[:, same])
        assert not torch.equal(after, before)


def cut_points(length: int, seed: int) -> list[tuple[int, int]]:
    """Uneven stretches of a row, some of one position, some longer than a chunk of 4."""
    generator = torch.Generator().manual_seed(seed)
    cuts = {t for t in range(2, length) if torch.rand((), generator=generator) < 0.15}
    return list(pairwise([0, 1, *sorted(cuts), length]))


def in_stretches(
    z: Tensor, given: tuple[Tensor, ...], ids: Tensor, seed: int, chunk: int
) -> Tensor:
    """`modal_conv` of one stretch after the other, each handed what the one before leaves."""
    log_rate, residue, skip = given
    outputs, carry = [], z.new_zeros(len(z), z.shape[1], log_rate.shape[1])
    for start, stop in cut_points(z.shape[-1], seed):
        went_on = [row[start] > 0 for row in counted(ids)]
        incoming = carry * torch.tensor(went_on)[None, :, None]
        left: list[Tensor] = []

        def hand_over(
            end: Tensor, rate: Tensor, incoming: Tensor = incoming, left: list[Tensor] = left
        ) -> Callable[[], Tensor]:
            left.extend((end, rate))
            return lambda: incoming

        documents = Documents.from_ids(ids).stretch(start, stop)
        part = z[..., start:stop]
        outputs.append(modal_conv(part, log_rate, residue, skip, chunk, documents, hand_over))
        end, rate = left
        through = torch.tensor([row[stop - 1] >= stop - start for row in counted(ids)])
        decay = torch.exp(-rate * (stop - start))[:, None]
        carry = end + through[None, :, None] * decay * incoming
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize("chunk", [4, 64])
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@every_layout
def test_carries_handed_from_stretch_to_stretch(ids: Tensor, seed: int, chunk: int) -> None:
    z, weight = draw(CHANNELS, *ids.shape).requires_grad_(), draw(CHANNELS, *ids.shape, seed=9)
    log_rate, residue, skip = given = tuple(p.requires_grad_() for p in modes())
    whole = modal_conv(z, log_rate, residue, skip, chunk, Documents.from_ids(ids))
    parts = in_stretches(z, given, ids, seed, chunk)
    close(parts, whole)
    gradients_close((parts * weight).sum(), (whole * weight).sum(), (z, *given))


def masked_softmax(q: Tensor, k: Tensor, v: Tensor, window: int | None, ids: Tensor) -> Tensor:
    """Attention over the whole row by an explicit mask [B, L, L]: causal, window, document."""
    place, length = counted(ids), ids.shape[1]
    hidden = torch.ones(len(ids), length, length, dtype=torch.bool)
    for row in range(len(ids)):
        for t in range(length):
            reach = place[row][t] + 1 if window is None else min(place[row][t] + 1, window)
            hidden[row, t, t - reach + 1 : t + 1] = False
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1) @ v


ATTENDED = every_layout_of(40)
every_window = pytest.mark.parametrize("window", [None, 1, 8, 39, 100])


def heads(rows: int, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (draw(rows, 2, 40, 4, seed=s).requires_grad_(grad) for s in range(3))
    return q, k, v


@pytest.mark.parametrize("ids", ATTENDED)
@every_window
def test_attention_on_documents_is_a_masked_softmax(ids: Tensor, window: int | None) -> None:
    q, k, v = heads(len(ids))
    weight = draw(len(ids), 2, 40, 4, seed=9)
    found = causal_attention(q, k, v, window, Documents.from_ids(ids))
    expected = masked_softmax(q, k, v, window, ids)
    close(found, expected)
    gradients_close((found * weight).sum(), (expected * weight).sum(), (q, k, v))


@pytest.mark.parametrize("ids", ATTENDED)
@every_window
@pytest.mark.parametrize("block", [1 << 26, 100])
def test_attention_with_keys_before_the_queries(
    ids: Tensor, window: int | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries of a stretch, with all keys before it, or as many as a window needs."""
    monkeypatch.setattr("megatron_hyena.ops.attention.MASK_ELEMENTS", block)
    q, k, v = heads(len(ids))
    weight, whole = draw(len(ids), 2, 40, 4, seed=9), masked_softmax(q, k, v, window, ids)
    for start, stop in ((0, 40), (13, 14), (13, 31)):
        first = 0 if window is None else max(0, start - window + 1)
        documents = Documents.from_ids(ids).stretch(start, stop)
        keys = (slice(None), slice(None), slice(first, stop))
        found = causal_attention(q[:, :, start:stop], k[keys], v[keys], window, documents)
        expected, part = whole[:, :, start:stop], weight[:, :, start:stop]
        close(found, expected, f"{start} to {stop}")
        gradients_close((found * part).sum(), (expected * part).sum(), (q, k, v))


@pytest.mark.parametrize("window", [None, 1, 8, 100])
def test_keys_before_the_queries_of_one_document_per_row(window: int | None) -> None:
    q, k, v = heads(2, grad=False)
    whole = masked_softmax(q, k, v, window, torch.zeros(2, 40, dtype=torch.int64))
    for start, stop in ((0, 40), (13, 14), (13, 31), (39, 40)):
        first = 0 if window is None else max(0, start - window + 1)
        keys = (slice(None), slice(None), slice(first, stop))
        found = causal_attention(q[:, :, start:stop], k[keys], v[keys], window)
        close(found, whole[:, :, start:stop])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 8])
def test_no_document_attends_to_another(window: int | None, dtype: torch.dtype) -> None:
    ids = drawn(3, 40, seed=1)
    documents = Documents.from_ids(ids)
    q, k, v = (x.to(dtype) for x in heads(3, grad=False))
    before = causal_attention(q, k, v, window, documents)
    for row, start, stop in runs(ids):
        other = [x.clone() for x in (q, k, v)]
        for x in other:
            x[row, :, start:stop] = 30 * draw(2, stop - start, 4, seed=7).to(dtype)
        same = torch.ones(ids.shape, dtype=torch.bool)
        same[row, start:stop] = False
        after = causal_attention(other[0], other[1], other[2], window, documents)
        assert torch.equal(after.transpose(1, 2)[same], before.transpose(1, 2)[same])
        assert not torch.equal(after, before)
