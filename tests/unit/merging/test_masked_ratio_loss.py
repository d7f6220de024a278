"""The ratio loss of models that are not causal: a mean over bytes, though few are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import small_config, small_model
from tests.oracles.merged_models import dna, stage_of

MASK, PAD = 2, 1


def drawn(rows: int = 3, length: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes with hidden ones, the truth, and the weights; the last row ends in padding."""
    ids = dna(rows, length)
    ids[-1, 40:] = PAD
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.rand(rows, length, generator=generator) < 0.15) & (ids != PAD)
    weights = hidden.double()
    weights[0] *= 0.5
    return ids.masked_fill(hidden, MASK), ids, weights


def model_of(pattern: str, causal: bool = False) -> HyenaGLT:
    """Whose rates have been missed, so that there is something to pay."""
    model = small_model(small_config(pattern, causal=causal, window=16, slots=16)).train()
    for number in range(len(model.stages)):
        stage_of(model, number).rate.wanted.fill_(0.9)
    return model


@pytest.mark.parametrize("pattern", ["S(S)A", "S(S(L)0.25)"])
def test_each_row_pays_its_mean_over_bytes(pattern: str) -> None:
    """Against loops over rows and bytes, and over the chunks of the inner stage."""
    ids, truth, weights = drawn()
    model = model_of(pattern)
    paid = model.weighted_losses(ids, truth, weights)[1]
    model.eval()  # the same decisions; what it paid is a function of them
    with torch.no_grad():
        merges = model(ids).merges
    total = 0.0
    for row in range(3):
        counted = [t for t in range(64) if ids[row, t] != PAD]
        sums = 0.0
        for number, merge in enumerate(merges):
            assert merge.penalty_LB is not None
            opens = merges[0].chunks.opens_nWB[:, :, row].flatten()
            for t in range(64):
                if number == 0:
                    sums += float(merge.penalty_LB[t, row])
                elif opens[t]:
                    slot = 16 * (t // 16) + int(opens[16 * (t // 16) : t].sum())
                    sums += float(merge.penalty_LB[slot, row]) / 0.5
        total += float(weights[row].sum()) * sums / len(counted)
    assert abs(total) > 1e-3
    assert float(paid.detach()) == pytest.approx(total, rel=1e-10)


def test_it_is_as_large_as_a_causal_models() -> None:
    """The bytes asked for are anchors, which pay nothing; the others pay for them."""
    ids, truth, weights = drawn()
    masked = model_of("S(S)A")
    hidden = masked.weighted_losses(ids, truth, weights)[1] / weights.sum()
    everywhere = (ids != PAD).double()
    plain = masked.weighted_losses(ids, truth, everywhere)[1] / everywhere.sum()
    assert 0.8 < float(hidden.detach() / plain.detach()) < 1.25
    penalty = masked.eval()(ids).merges[0].penalty_LB
    assert penalty is not None and not (penalty.t() * weights).any()


def test_it_adds_up_over_micro_batches_and_reaches_the_router() -> None:
    ids, truth, weights = drawn(4)
    model = model_of("S(S)A")
    whole = model.weighted_losses(ids, truth, weights)[1]
    parts = [
        model.weighted_losses(ids[r : r + 2], truth[r : r + 2], weights[r : r + 2])[1]
        for r in (0, 2)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-11, atol=0)
    whole.backward()
    gradients = [p.grad for n, p in model.named_parameters() if ".router." in n]
    assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients)


def test_labels_pay_like_weights() -> None:
    ids, truth, _ = drawn()
    model = model_of("S(S)A")
    labels = torch.where(ids == MASK, truth, -100)
    output = model(ids, labels=labels)
    asked = (labels != -100).double()
    expected = model.weighted_losses(ids, truth, asked)[1] / asked.sum()
    assert output.ratio_loss is not None
    torch.testing.assert_close(output.ratio_loss, expected, rtol=1e-11, atol=0)


def test_causal_models_pay_where_they_are_asked() -> None:
    ids, truth, weights = drawn()
    model = model_of("S(S)A", causal=True)
    paid = model.weighted_losses(ids, truth, weights)[1]
    penalty = model.eval()(ids).merges[0].penalty_LB
    assert penalty is not None
    torch.testing.assert_close(paid, (penalty.t() * weights).sum(), rtol=1e-11, atol=0)
