"""Merged models look back only: changed bytes, and derivatives, through whole models in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.config import SIGNS
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.model.hyena_glt import HyenaGLT, HyenaGLTOutput
from tests.oracles.drawing import draw
from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    assert_lively,
    boundaries,
    dna,
    lively_model,
    merged_config,
    tracks_for,
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "S(SMLA)S": ("S(SMLA)S", {}),
    "S(S(MLA)S)W": ("S(S(MLA)S)W", {}),
    "S(H)S": ("S(HG)S" if "G" in SIGNS else "S(H)S", {}),
    "(S)(A)": ("(S)(A)0.7", {"merge_fn": "mean", "similarity": "cosine"}),
    **{f"{NESTED} {kind}": (NESTED, changes) for kind, changes in KINDS.items()},
}
CASES[f"{NESTED} adaptive kmer"] = ("S(M)S", KINDS["adaptive kmer"])
every_case = pytest.mark.parametrize("case", CASES)


def made(case: str) -> tuple[HyenaGLT, Tensor]:
    """A model, and a row of bytes that its windows divide: [1, L]."""
    pattern, changes = CASES[case]
    chosen = {"merge_ratio", "window"} & changes.keys() or changes.get("merger") == "static"
    slots = 0 if chosen else 6
    config = merged_config(pattern, **{"slots": slots, **changes})
    length = 96 if config.complexity == "kmer" else 48
    ids = dna(1, length, seed=3)
    return lively_model(config, torch.cat([ids, dna(2, length)])), ids


def opened_places(output: HyenaGLTOutput) -> list[Tensor]:
    """Of each stage, which bytes of a row open a chunk there: bool [B, L]."""
    found = []
    for merge in output.merges:
        opens = merge.chunks.opens_nWB.flatten(0, 1)
        place = merge.below.place_LB.where(opens, len(output.merges[0].below.place_LB))
        table = torch.zeros(place.shape[1], len(output.merges[0].below.place_LB) + 1)
        found.append(table.scatter(1, place.t(), 1.0)[:, :-1] > 0)
    return found


def assert_same_before(
    plain: HyenaGLTOutput, changed: HyenaGLTOutput, first: Tensor, tolerance: float
) -> int:
    """Nothing of a row differs before its `first` place; the number of openings that do behind."""
    length, differing = plain.logits.shape[1], 0
    before = torch.arange(length) < first[:, None]
    error = (plain.logits - changed.logits).abs().amax(-1)
    assert error[before].max() <= tolerance
    assert (error.gather(1, first[:, None]) > 0).any()
    for one, other in zip(opened_places(plain), opened_places(changed), strict=True):
        differs = (one != other)[:, :length]
        assert not differs[before].any()
        differing += int(differs.sum())
    return differing


@pytest.mark.parametrize("letters", ["Ag", pytest.param("ACgN", marks=pytest.mark.slow)])
@every_case
def test_a_changed_byte_changes_no_opening_and_no_logit_before_it(case: str, letters: str) -> None:
    """Every place, these letters; to the bit, but for the Fourier transform of H."""
    model, ids = made(case)
    length = ids.shape[1]
    first = torch.arange(length).repeat_interleave(len(letters))
    others = torch.tensor(list(letters.encode())).repeat(length)
    plain = ids.expand(len(first), -1)
    kept = ids[0, first] != others
    first, plain = first[kept], plain[kept]
    changed = plain.scatter(1, first[:, None], others[kept][:, None])
    tracks = tracks_for(model.config, ids)
    wide = {n: t.expand(len(first), -1) for n, t in tracks.items()} if tracks else None
    with torch.no_grad():
        before, after = model(plain, tracks=wide), model(changed, tracks=wide)
    assert_lively(before)
    differing = assert_same_before(before, after, first, 1e-12 if "H" in case else 0.0)
    learned = model.config.merger in ("wcc", "hnet")
    assert (differing > 0) == learned


def test_a_changed_boundary_changes_nothing_before_it() -> None:
    config = merged_config(NESTED, merger="precomputed", slots=6)
    ids = dna(1, 48)
    model = lively_model(config, ids)
    first = torch.arange(48).repeat_interleave(3)
    values = torch.arange(3).repeat(48)
    plain = boundaries(1, 48, seed=3).expand(len(first), -1)
    kept = (plain.gather(1, first[:, None])[:, 0] != values) & (first % 8 > 0)
    first, plain = first[kept], plain[kept]
    changed = plain.scatter(1, first[:, None], values[kept][:, None])
    rows = ids.expand(len(first), -1)
    with torch.no_grad():
        before = model(rows, tracks={"boundaries": plain})
        after = model(rows, tracks={"boundaries": changed})
    assert_lively(before)
    assert assert_same_before(before, after, first, 0.0) > 0


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@every_case
def test_the_jacobian_is_zero_above_the_diagonal(case: str, step: int) -> None:
    """Of the logits by the embedded bytes, and by what the router sees of them.

    Each `step`-th row, at every place of a window. Backwards, where the choice of chunks passes
    its gradient straight through.
    """
    model, ids = made(case)
    seen: list[Tensor] = []
    model.embedding.register_forward_hook(lambda _m, _i, out: seen.insert(0, out))

    def note_features(_module: object, _inputs: object, axis: Axis) -> None:
        if axis.router_LBR is not None:
            seen.append(axis.router_LBR)

    model.byte_axis.register_forward_hook(note_features)
    output = model(ids, tracks=tracks_for(model.config, ids))
    assert_lively(output)
    assert len(seen) == 1 + (model.config.router_input == "trunk")
    along = draw(model.config.vocab_size)
    for t in range(0, ids.shape[1], step):
        found = torch.autograd.grad(output.logits[0, t] @ along, seen, retain_graph=True)
        for gradient in found:
            above = gradient[t + 1 :].abs().sum()
            assert above <= (1e-12 * gradient.abs().max() if "H" in case else 0.0)
        assert found[0][t].abs().max() > 0
