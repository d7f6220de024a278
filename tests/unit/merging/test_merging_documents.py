"""Documents in a row that merges: each as if it were alone, and deaf to the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT, HyenaGLTOutput
from tests.oracles.documents import numbered, runs
from tests.oracles.drawing import draw
from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    assert_lively,
    dna,
    lively_model,
    merged_config,
    stage_of,
    tracks_for,
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "all layers": ("S(S(MLAW)H)S", {}),
    "genomic": ("S(G(M))S", {}),
    **{kind: (NESTED, changes) for kind, changes in KINDS.items()},
}
BY_HAND = {
    *("cosine and mean", "not smoothed", "adaptive window", "hnet trunk"),
    *("static select", "precomputed linear"),
}
"""Beside which another kind of the same merger is in the suite."""
every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=(pytest.mark.slow,) if c in BY_HAND else ()) for c in CASES]
)


def beside(config: HyenaGLTConfig, ids: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Tracks that the model reads: boundaries, and conservation, in part unknown."""
    tracks = tracks_for(config, ids, seed) or {}
    if "G" in config.pattern:
        known = draw(len(ids), ids.shape[1], seed=seed).float()
        tracks["conservation"] = known.masked_fill(known > 1, float("nan"))
    return tracks


def made(case: str) -> tuple[HyenaGLT, Tensor, Tensor, dict[str, Tensor]]:
    """A model, bytes, documents and tracks of three rows."""
    pattern, changes = CASES[case]
    chosen = {"merge_ratio", "window"} & changes.keys() or changes.get("merger") == "static"
    slots = 0 if chosen else 4
    config = merged_config(pattern, **{"slots": slots, **changes})
    step = HyenaGLT(config).merging_multiple
    length = 5 * step
    ids = dna(3, length)
    starts = [[step, 2 * step], [], [3 * step, 4 * step]]
    tracks = beside(config, ids)
    model = lively_model(config, ids)
    for number in range(len(model.stages)):
        stage_of(model, number).rate.wanted.mul_(1.2)  # at the target the ratio loss has no slope
    return model, ids, numbered(length, starts), tracks


def cut(tracks: dict[str, Tensor], here: tuple[slice, slice]) -> dict[str, Tensor]:
    return {name: track[here] for name, track in tracks.items()}


def close(found: Tensor, expected: Tensor, what: str) -> None:
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert error <= 1e-12, f"{what}: {error:.1e}"


def same_decisions(packed: HyenaGLTOutput, alone: HyenaGLTOutput, row: int, start: int) -> None:
    """Openings, slots and places of every stage; `start` in bytes."""
    for whole, part in zip(packed.merges, alone.merges, strict=True):
        window, first = whole.chunks.opens_nWB.shape[1], start
        size = len(part.below.place_LB)
        assert first % window == 0
        here = slice(first, first + size)
        assert torch.equal(whole.below.place_LB[here, row], part.below.place_LB[:, 0])
        windows = slice(first // window, (first + size) // window)
        for name in ("opens_nWB", "slot_nWB", "start_nKB", "filled_nKB"):
            one, other = getattr(whole.chunks, name), getattr(part.chunks, name)
            assert torch.equal(one[windows, :, row], other[:, :, 0]), name
        start = first // window * whole.chunks.slots  # where it starts on the axis of slots


def gradients(model: HyenaGLT, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


@every_case
def test_a_packed_document_merges_as_it_does_alone(case: str) -> None:
    """Logits, decisions, the losses and all gradients, those of the ratio loss included."""
    model, ids, documents, tracks = made(case)
    targets = dna(len(ids), ids.shape[1], seed=1)
    packed = model(ids, document_ids=documents, tracks=tracks)
    assert_lively(packed)
    weights = torch.ones(ids.shape, dtype=torch.float64)
    losses = model.weighted_losses(ids, targets, weights, documents, tracks)
    total = torch.zeros(2, dtype=torch.float64)
    for row, start, stop in runs(documents):
        here = (slice(row, row + 1), slice(start, stop))
        alone = model(ids[here], tracks=cut(tracks, here))
        close(packed.logits[here], alone.logits, "logits")
        same_decisions(packed, alone, row, start)
        total = total + model.weighted_losses(
            ids[here], targets[here], weights[here], tracks=cut(tracks, here)
        )
    close(losses, total, "losses")
    assert (losses[1] != 0) == (model.config.merger in ("wcc", "hnet"))
    found, expected = gradients(model, losses.sum()), gradients(model, total.sum())
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        close(found[name], gradient, name)


@every_case
def test_changing_one_document_leaves_the_others_equal_to_the_bit(case: str) -> None:
    """The bytes and tracks of each in turn."""
    model, ids, documents, tracks = made(case)
    other = dna(len(ids), ids.shape[1], seed=7)
    other_tracks = beside(model.config, ids, seed=7)
    with torch.no_grad():
        before = model(ids, document_ids=documents, tracks=tracks).logits
        for row, start, stop in runs(documents):
            changed = torch.zeros_like(ids, dtype=torch.bool)
            changed[row, start:stop] = True
            mixed = {n: torch.where(changed, other_tracks[n], t) for n, t in tracks.items()}
            after = model(
                torch.where(changed, other, ids), document_ids=documents, tracks=mixed
            ).logits
            assert torch.equal(before[~changed], after[~changed])
            assert not torch.equal(before[changed], after[changed])


@every_case
def test_no_gradient_crosses_from_one_document_into_another(case: str) -> None:
    """Of one document's loss by the embedded bytes of the others: exactly zero."""
    model, ids, documents, tracks = made(case)
    seen: list[Tensor] = []
    model.embedding.register_forward_hook(lambda _m, _i, out: seen.append(out))
    losses = model.token_losses(ids, dna(len(ids), ids.shape[1], seed=1), documents, tracks)
    for row, start, stop in runs(documents):
        loss = losses[row, start:stop].sum()
        (gradient,) = torch.autograd.grad(loss, seen, retain_graph=True)
        inside = torch.zeros_like(ids, dtype=torch.bool)
        inside[row, start:stop] = True
        assert gradient.transpose(0, 1)[~inside].abs().max() == 0
        assert gradient.transpose(0, 1)[inside].abs().max() > 0


def test_a_document_that_begins_inside_a_window_is_refused_with_both_numbers() -> None:
    model = lively_model(merged_config(NESTED, slots=4), dna(1, 64))
    assert model.merging_multiple == 16
    with pytest.raises(UserError) as caught:
        model(dna(1, 64), document_ids=numbered(64, [[16, 40]]))
    message = str(caught.value)
    assert "position 40 of row 0" in message
    assert "multiples of 16" in message
