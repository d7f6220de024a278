"""Arithmetic of merging: values against loops, gradients against differences and plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.stage import MergedStage
from megatron_hyena.ops.merging import (
    BLOCK,
    Chunks,
    admit,
    decay,
    even_openings,
    scan,
    straight_through,
)
from tests.oracles.drawing import draw
from tests.oracles.merged_models import dna, lively_model, merged_config, record, stage_of

LENGTHS = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, BLOCK * BLOCK + 5]


def kept(length: int, rows: int, seed: int = 0) -> Tensor:
    """Gates of the scan in [0, 1], some of them exactly 0 or 1."""
    keep = draw(length, rows, seed=seed).sigmoid()
    keep[draw(length, rows, seed=seed + 1) > 1.2] = 1.0
    return keep.masked_fill(draw(length, rows, seed=seed + 2) > 1.5, 0.0)


def scan_by_hand(keep: Tensor, x: Tensor) -> Tensor:
    """One position after the other."""
    states, state = [], torch.zeros_like(x[0])
    for k, new in zip(keep, x, strict=True):
        state = k[:, None] * state + new
        states.append(state)
    return torch.stack(states)


@pytest.mark.parametrize("length", LENGTHS)
def test_scan_and_its_gradients_equal_the_loop(length: int) -> None:
    keep = kept(length, 3).requires_grad_()
    x = draw(length, 3, 4).requires_grad_()
    along = draw(length, 3, 4, seed=9)
    found, expected = scan(keep, x), scan_by_hand(keep, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((y * along).sum(), (keep, x)) for y in (found, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", LENGTHS)
def test_decay_is_the_running_product_and_so_are_its_gradients(length: int) -> None:
    keep = (0.9 + 0.2 * kept(length, 2)).requires_grad_()
    found, expected = decay(keep), keep.cumprod(0)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(decay(keep.detach()), expected.detach(), rtol=1e-11, atol=0)
    along = draw(length, 2)
    grads = [torch.autograd.grad((y * along).sum(), keep)[0] for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def test_scan_begins_anew_where_nothing_is_kept() -> None:
    """To the bit, whatever came before; also at the edge of a block."""
    for start in (1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK):
        keep = kept(3 * BLOCK, 2)
        keep[start] = 0
        x = draw(3 * BLOCK, 2, 3)
        other = torch.cat([1e3 * x[:start], x[start:]])
        assert torch.equal(scan(keep, x)[start:], scan(keep, other)[start:])


def drawn_chunks(windows: int, window: int, slots: int, rows: int = 2) -> Chunks:
    """Some windows without a chunk, some full; positions before the first chunk of a window."""
    generator = torch.Generator().manual_seed(window)
    shape = (windows, window, rows)
    present = torch.rand(shape, generator=generator) < 0.7
    present[1] = False
    wanted = torch.rand(shape, generator=generator) < 0.6
    return Chunks.of(admit(wanted, present, slots)[0], slots)


@pytest.mark.parametrize(("window", "slots"), [(4, 1), (5, 3), (6, 6)])
def test_gradients_of_reading_summing_and_opening(window: int, slots: int) -> None:
    """Against differences; what reads nothing has no gradient."""
    chunks = drawn_chunks(4, window, slots)
    x = draw(4 * window, 2, 3).requires_grad_()
    z = draw(4 * slots, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(chunks.read, (z,))
    assert torch.autograd.gradcheck(chunks.sums, (x,))
    assert torch.autograd.gradcheck(chunks.openings, (x,))


@pytest.mark.parametrize(("window", "slots"), [(4, 1), (5, 3), (6, 6)])
def test_sums_equal_the_loop(window: int, slots: int) -> None:
    chunks, x = drawn_chunks(4, window, slots), draw(4 * window, 2, 3)
    expected = torch.zeros(4 * slots, 2, 3, dtype=torch.float64)
    for b in range(2):
        for n in range(4):
            now = -1
            for j in range(window):
                now += int(chunks.opens_nWB[n, j, b])
                if now >= 0:
                    expected[n * slots + now, b] += x[n * window + j, b]
    torch.testing.assert_close(chunks.sums(x), expected, rtol=1e-13, atol=1e-13)
    empty = ~chunks.filled_nKB.flatten(0, 1)
    assert empty.any() or slots == 1
    assert not chunks.sums(x)[empty].any()


def test_straight_through_is_the_identity_forwards() -> None:
    """And backwards a product with the confidence, which is 1 for the vector's own gradient."""
    z, confidence = draw(7, 2, 3).requires_grad_(), draw(7, 2).sigmoid().requires_grad_()
    found = straight_through(z, confidence)
    assert torch.equal(found, z)
    one = confidence + (1 - confidence).detach()
    along = draw(7, 2, 3, seed=4)
    grads = [
        torch.autograd.grad((y * along).sum(), (z, confidence)) for y in (found, one[..., None] * z)
    ]
    for mine, plain in zip(*grads, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("window", "slots"), [(8, 1), (8, 3), (8, 8), (7, 4), (128, 48)])
def test_even_openings_are_k_and_as_even_as_can_be(window: int, slots: int) -> None:
    places = even_openings(window, slots, torch.device("cpu")).nonzero()[:, 0]
    assert len(places) == slots
    assert places[0] == 0
    lengths = torch.diff(places, append=torch.tensor([window]))
    assert lengths.max() - lengths.min() <= 1


def exit_by_hand(
    stage: MergedStage,
    p_LB: Tensor,
    z_MBH: Tensor,
    x_LBH: Tensor,
    axis: Axis,
    starts_MB: Tensor,
    slot_LB: Tensor,
) -> Tensor:
    """The exit of a stage in plain differentiable torch, decisions given."""
    rows = []
    for b in range(p_LB.shape[1]):
        states, state = [], torch.zeros_like(z_MBH[0, 0])
        for m, t in enumerate(starts_MB[:, b].tolist()):
            if t >= 0:
                gate = p_LB[t, b].clamp(1e-4, 1 - 1e-4) if axis.place_LB[t, b] != 0 else 1.0
                state = gate * z_MBH[m, b] + (1 - gate) * state
            states.append(state)
        for t, m in enumerate(slot_LB[:, b].tolist()):
            p = p_LB[t, b]
            confidence = p if starts_MB[m, b] == t else 1 - p
            one = confidence + (1 - confidence).detach()
            rows.append(x_LBH[t, b] + stage.skip @ x_LBH[t, b] + one * states[m])
    return torch.stack(rows).view(p_LB.shape[1], len(x_LBH), -1).transpose(0, 1)


def test_gradients_of_a_stage_are_those_of_its_equations() -> None:
    """By probabilities, slots, inputs and the skip's weight: through smoothing and the choice."""
    config = merged_config("S(M)S")
    model = lively_model(config, dna(2, 96))
    notes = record(model)
    with torch.no_grad():
        model(dna(2, 96))
    (note,), stage = notes[0], stage_of(model)
    x, z = note.x.clone().requires_grad_(), draw(*note.u.shape).requires_grad_()
    _, merge = stage.merge(x, note.merge.below)
    p = merge.probability_LB
    assert p is not None
    chunks, window = merge.chunks, stage.shape.window
    first = torch.arange(len(x) // window)[:, None, None]
    starts = (first * window + chunks.start_nKB).masked_fill(~chunks.filled_nKB, -1)
    slot = first * stage.shape.slots + chunks.slot_nWB
    found = stage.unmerge(z, merge, x)
    expected = exit_by_hand(stage, p, z, x, merge.below, starts.flatten(0, 1), slot.flatten(0, 1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    along = draw(*x.shape, seed=5)
    over = (p, z, x, stage.skip)
    grads = [
        torch.autograd.grad((y * along).sum(), over, retain_graph=True) for y in (found, expected)
    ]
    for mine, plain in zip(*grads, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-11)
