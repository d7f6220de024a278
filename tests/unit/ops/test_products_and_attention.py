"""Layout-changing products, rotary positions and masked attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from megatron_hyena.ops.attention import causal_attention, rotary_angles, rotate
from megatron_hyena.ops.linear import from_channel_first, to_channel_first
from tests.oracles.drawing import draw
from tests.oracles.operators import rotated


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).requires_grad_()


@pytest.mark.parametrize("batch", [1, 3])
def test_products_change_the_layout(batch: int) -> None:
    x, weight = draw(7, batch, 4), draw(5, 4, seed=1)
    y = to_channel_first(x, weight)
    expected = np.einsum("dh,lbh->dbl", weight.numpy(), x.numpy())
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-14)
    back = from_channel_first(y, weight.t().contiguous())
    expected = np.einsum("hd,dbl->lbh", weight.t().numpy(), y.numpy())
    np.testing.assert_allclose(back.numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 3])
def test_products_gradients(batch: int) -> None:
    assert gradcheck(to_channel_first, (leaf(6, batch, 4), leaf(5, 4, seed=1)))
    assert gradcheck(from_channel_first, (leaf(5, batch, 6), leaf(4, 5, seed=1)))


def test_products_follow_autocast_and_leave_fp64_alone() -> None:
    x, weight = draw(7, 2, 4).float(), draw(5, 4, seed=1).float()
    assert to_channel_first(x, weight).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert to_channel_first(x, weight).dtype == torch.bfloat16
        assert from_channel_first(x, torch.zeros(3, 7)).dtype == torch.bfloat16
        assert to_channel_first(x.double(), weight.double()).dtype == torch.float64


def test_rotary_positions() -> None:
    x = draw(9, 6)
    cos, sin = rotary_angles(torch.arange(9), 6, 10000.0, torch.float64)
    expected = np.stack([rotated(x[t].numpy(), t, 10000.0) for t in range(9)])
    np.testing.assert_allclose(rotate(x, cos, sin).numpy(), expected, atol=1e-13)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    q, k = draw(8), draw(8, seed=1)
    cos, sin = rotary_angles(torch.arange(40), 8, 100.0, torch.float64)
    scores = rotate(q.expand(40, 8), cos, sin) @ rotate(k.expand(40, 8), cos, sin).t()
    torch.testing.assert_close(scores[5, 2], scores[30, 27], rtol=1e-12, atol=1e-12)
    assert abs(float(scores[5, 2] - scores[5, 3])) > 1e-3


def test_rotary_scores_at_the_end_of_a_chromosome() -> None:
    """In fp32, whose numbers leave out three of four positions there."""
    q, k = draw(64).float(), draw(64, seed=1).float()
    scores = []
    for start in (0, 248_956_400):
        cos, sin = rotary_angles(torch.arange(start, start + 40), 64, 10000.0, torch.float32)
        scores.append(rotate(q.expand(40, 64), cos, sin) @ rotate(k.expand(40, 64), cos, sin).t())
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-4)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Softmax over an explicit [L, L] mask."""
    length = q.shape[-2]
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    for t in range(length):
        for s in range(length):
            if s > t or (window is not None and s <= t - window):
                scores[..., t, s] = -torch.inf
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 30, 32])
@pytest.mark.parametrize("window", [None, 1, 8, 31, 100])
def test_attention_is_a_masked_softmax(length: int, window: int | None) -> None:
    q, k, v = (draw(2, 3, length, 4, seed=s) for s in range(3))
    found = causal_attention(q, k, v, window)
    torch.testing.assert_close(found, dense_attention(q, k, v, window), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("length", "window"), [(5, None), (7, 3), (6, 3), (4, 9)])
def test_attention_gradients(length: int, window: int | None) -> None:
    inputs = tuple(leaf(1, 2, length, 4, seed=s) for s in range(3))
    assert gradcheck(lambda q, k, v: causal_attention(q, k, v, window), inputs)
