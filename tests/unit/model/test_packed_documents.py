"""Several documents in a row: each is computed, scored and trained on as if it were alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_hyena.layers import attention
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.ops.attention import rotary_angles
from tests.oracles import language_model
from tests.oracles.documents import counted, numbered, runs
from tests.oracles.drawing import draw_bytes, small_config, small_model, weights

PATTERNS = [*"SMLHGAW", "[SMLA]2"]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)
LENGTH = 170
# Of one byte at the start, in the middle and at the end; longer than a chunk of 64 and than M's
# 128 taps; the second row is one document, and the third ends with one that another id follows.
IDS = numbered(LENGTH, [[1, 71, 72, 74, 169], [], [140, 141, 160]])


def close(found: Tensor, expected: Tensor, what: str = "") -> None:
    """To 1e-12 of the largest number."""
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert error <= 1e-12, f"{what}: {error:.1e}"


def gradients(model: HyenaGLT, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


@every_pattern
def test_a_packed_document_equals_the_document_alone(pattern: str) -> None:
    """Logits, losses, and the gradients: those of all documents together."""
    model, ids = small_model(small_config(pattern)), draw_bytes(len(IDS), LENGTH)
    targets = draw_bytes(len(IDS), LENGTH, seed=1)
    packed = model(ids, document_ids=IDS)
    losses = model.token_losses(ids, targets, IDS)
    total = torch.zeros((), dtype=torch.float64)
    for row, start, stop in runs(IDS):
        here = (slice(row, row + 1), slice(start, stop))
        alone = model(ids[here])
        close(packed.logits[here], alone.logits)
        close(packed.last_hidden_state[here], alone.last_hidden_state)
        nats = model.token_losses(ids[here], targets[here])
        close(losses[here], nats)
        total = total + nats.sum()
    found, expected = gradients(model, losses.sum()), gradients(model, total)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0 or ".conservation." in name, name  # there is no track
        close(found[name], gradient, name)


@every_pattern
def test_the_loss_of_packed_labels_is_that_of_the_documents_alone(pattern: str) -> None:
    """Nothing is scored across an edge; the mean is over what is scored."""
    model, ids = small_model(small_config(pattern)), draw_bytes(len(IDS), LENGTH)
    packed = model(ids, ids, document_ids=IDS).loss
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, start, stop in runs(IDS):
        here = (slice(row, row + 1), slice(start, stop))
        total = total + model(ids[here], ids[here]).loss * (stop - start - 1)
        count += stop - start - 1
    assert packed.item() == pytest.approx(total.item() / count, rel=1e-12)
    found, expected = gradients(model, packed), gradients(model, total / count)
    for name, gradient in expected.items():
        close(found[name], gradient, name)


def test_labels_across_documents_and_minus_100_are_not_scored() -> None:
    config = small_config("SA")
    model, ids = small_model(config), draw_bytes(2, 9)
    documents = torch.tensor([[4, 4, 4, 1, 1, 4, 4, 4, 4], [0, 1, 2, 3, 3, 3, 3, 3, 3]])
    labels = ids.clone()
    labels[0, 6] = -100
    output = model(ids, labels, documents)
    edges = labels.clone()
    edges[0, [3, 5]] = -100
    edges[1, [1, 2, 3]] = -100
    logits = output.logits.detach().numpy()
    nats = language_model.next_byte_loss(logits, edges.numpy())
    assert output.loss.item() == pytest.approx(nats, rel=1e-12)
    assert nats != pytest.approx(language_model.next_byte_loss(logits, labels.numpy()), rel=1e-6)
    single = torch.arange(9).expand(2, 9)
    assert model(ids, labels, single).loss.item() == 0.0


@pytest.mark.parametrize("pattern", ["SMLHGAW"])
def test_packed_documents_equal_the_equations(pattern: str) -> None:
    """The whole model written out in loops, document by document."""
    config, documents = small_config(pattern), numbered(30, [[1, 9, 20], [29]])
    model, ids = small_model(config), draw_bytes(2, 30)
    found = model(ids, document_ids=documents).logits.detach().numpy()
    for row, start, stop in runs(documents):
        part = ids[row : row + 1, start:stop].numpy()
        expected = language_model.logits(part, weights(model), config)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            found[row : row + 1, start:stop], expected, rtol=0, atol=1e-11 * scale
        )


@pytest.mark.parametrize(
    "precision", ["fp64", pytest.param("fp32", marks=pytest.mark.slow), "bf16"]
)
@every_pattern
def test_changing_a_document_changes_no_bit_of_the_others(pattern: str, precision: str) -> None:
    model, ids = small_model(small_config(pattern)).eval(), draw_bytes(len(IDS), LENGTH)
    if precision != "fp64":
        model.float()
    low = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with torch.no_grad(), low:
        before = model(ids, document_ids=IDS).logits
        for row, start, stop in runs(IDS):
            other = ids.clone()
            other[row, start:stop] = (
                other[row, start:stop] + 1 + draw_bytes(1, stop - start)[0] % 255
            ) % 256
            assert (other != ids).sum() == stop - start
            changed = torch.zeros(IDS.shape, dtype=torch.bool)
            changed[row, start:stop] = True
            after = model(other, document_ids=IDS).logits
            assert torch.equal(after[~changed], before[~changed])
            assert (after[changed] != before[changed]).any(-1).all()


@pytest.mark.parametrize("sign", "AW")
def test_rotary_positions_restart_with_each_document(
    sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores depend on distances only, so no output can show it but by its rounding."""
    seen: list[Tensor] = []

    def recorded(positions: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        seen.append(positions)
        return rotary_angles(positions, *rest)

    monkeypatch.setattr(attention, "rotary_angles", recorded)
    model = small_model(small_config(sign))
    model(draw_bytes(len(IDS), LENGTH), document_ids=IDS)
    model(draw_bytes(1, 5))
    packed, alone = seen
    assert packed[:, 0].tolist() == counted(IDS)
    assert alone.tolist() == [0, 1, 2, 3, 4]


def test_rows_without_edges_are_rows_without_documents() -> None:
    model, ids = small_model(small_config("SMLHGAW")), draw_bytes(2, 80)
    plain = model(ids, ids)
    packed = model(ids, ids, torch.tensor([[3], [3]]).expand(2, 80))
    close(packed.logits, plain.logits)
    assert packed.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12)


def test_recomputation_keeps_documents_apart() -> None:
    config, ids = small_config("SMLHGAW"), draw_bytes(len(IDS), LENGTH)
    found = []
    for recompute in ("none", "block", "LA"):
        model = HyenaGLT(config, seed=3, recompute=recompute).train()
        losses = model.token_losses(ids, ids.roll(1, 1), IDS)
        found.append((losses, gradients(model, losses.sum())))
    for losses, grads in found[1:]:
        assert torch.equal(losses, found[0][0])
        for name, gradient in found[0][1].items():
            assert torch.equal(grads[name], gradient), name
