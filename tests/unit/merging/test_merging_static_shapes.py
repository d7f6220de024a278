"""Shapes follow from the configuration alone: one compiled graph, 1 to K slots in a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.model.hyena_glt import HyenaGLT, HyenaGLTOutput
from tests.oracles.compiled import assert_exact, assert_one_graph, compiled, gradients
from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    assert_lively,
    boundaries,
    dna,
    lively_model,
    merged_config,
    stage_of,
)

LENGTH = 128


def inputs(length: int = LENGTH, count: int = 20) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Random letters, and the extremes: one letter only, any bytes, no boundary, all boundaries."""
    found = []
    for seed in range(count):
        ids, track = dna(2, length, seed), boundaries(2, length, seed)
        if seed == 1:
            ids, track = torch.full_like(ids, ord("A")), torch.zeros_like(track)
        if seed == 2:
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(2, 256, ids.shape, generator=generator)
            track = torch.full_like(track, 2)
        found.append((ids, {"boundaries": track}))
    return found


def losses(model: HyenaGLT) -> Callable[..., tuple[Tensor, ...]]:
    def run(ids: Tensor, tracks: dict[str, Tensor], documents: Tensor | None = None) -> Any:
        output = model(ids, labels=ids, tracks=tracks, document_ids=documents)
        return output.loss + output.ratio_loss, output.logits

    return run


@pytest.mark.parametrize(
    ("pattern", "kind", "length", "count"),
    [
        pytest.param("(S)", "wcc", 16, 4, marks=pytest.mark.smoke),
        *(
            pytest.param(pattern, kind, LENGTH, 20, marks=pytest.mark.slow)
            for pattern, kind in (
                ("S(L)A", "wcc"),
                ("SS([SMLA]2)SS", "wcc"),
                ("S(S(SMLA)0.5S)0.667S", "wcc"),
                *(("S(L(A))M", kind) for kind in KINDS),
                *((f"{sign}({sign})", "wcc") for sign in "SMLHGAW"),
            )
        ),
    ],
)
def test_a_merged_model_is_one_graph_for_all_inputs(
    pattern: str, kind: str, length: int, count: int
) -> None:
    """Of both passes, with the ratio loss; the same numbers, and never compiled again."""
    config = merged_config(pattern, **KINDS[kind])
    model = lively_model(config, dna(2, length))
    given = inputs(length, count)
    assert assert_one_graph(losses(model), list(model.parameters()), given) > 100


@pytest.mark.slow
def test_a_merged_model_with_documents_is_one_graph() -> None:
    config = merged_config("S(L(A))M")
    model = lively_model(config, dna(2, LENGTH))
    windows = LENGTH // model.merging_multiple
    packed = []
    for seed, (ids, tracks) in enumerate(inputs()):
        generator = torch.Generator().manual_seed(seed)
        begins = torch.rand(2, windows, generator=generator) < 0.1 * (seed % 5)
        packed.append(
            (ids, tracks, begins.long().cumsum(1).repeat_interleave(LENGTH // windows, 1))
        )
    assert_one_graph(losses(model), list(model.parameters()), packed)


def assert_counted_alike(model: HyenaGLT, ids: Tensor, run: Callable[..., Any]) -> None:
    """The rate controls have seen the same in a graph; every bin of every histogram."""
    counts = []
    for forward in (run, losses(model)):
        forward(ids, {})
        counts.append([stage_of(model, n).rate.take() for n in range(len(model.stages))])
    for ours, theirs in zip(*counts, strict=True):
        assert ours.sum() > 0
        assert torch.equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "block"])
def test_training_is_one_graph_while_rates_move(recompute: str) -> None:
    """The shift of a router is an input of the graph, not a number in it."""
    model = lively_model(merged_config("S(LA)S"), dna(2, LENGTH))
    model.recomputed = tuple(recompute == "block" for _ in model.recomputed)
    model.train()
    run, graphs = compiled(losses(model))
    shifts = set()
    for seed in range(5):
        assert_counted_alike(model, dna(2, LENGTH, seed), run)
        rate = stage_of(model).rate
        ids = dna(2, LENGTH, seed)
        ours, theirs = run(ids, {})[0], losses(model)(ids, {})[0]
        assert_exact(ours, theirs)
        parameters = list(model.parameters())
        found, right = gradients(ours, parameters), gradients(theirs, parameters)
        for g, r in zip(found, right, strict=True):
            assert (g is None) == (r is None)
            if g is not None and r is not None:
                assert_exact(g, r)
        rate.update(rate.take())
        shifts.add(rate.shift.item())
    assert len(shifts) == 5
    assert len(graphs.sizes) == 1


def shapes(output: HyenaGLTOutput) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [tuple(output.logits.shape)]
    for merge in output.merges:
        chunks = merge.chunks
        for tensor in (
            chunks.opens_nWB,
            chunks.slot_nWB,
            chunks.start_nKB,
            chunks.filled_nKB,
            merge.axis.place_LB,
            merge.below.place_LB,
        ):
            found.append(tuple(tensor.shape))
    return found


def assert_kept_within_the_budget(model: HyenaGLT, output: HyenaGLTOutput) -> None:
    """1 to K chunks in every window of every stage."""
    for merge in output.merges:
        kept = merge.chunks.filled_nKB.sum(1)
        assert kept.min() >= 1
        assert kept.max() <= merge.chunks.slots
        assert torch.equal(kept, merge.chunks.opens_nWB.sum(1))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_the_same_for_all_inputs_and_windows_keep_1_to_k(kind: str) -> None:
    config = merged_config(NESTED, **KINDS[kind])
    model = lively_model(config, dna(2, LENGTH))
    found, fractions = set(), []
    with torch.no_grad():
        for ids, tracks in inputs(count=8):
            output = model(ids, tracks=tracks)
            found.add(tuple(shapes(output)))
            assert_kept_within_the_budget(model, output)
            fractions.append(output.merges[0].chunks.opens_nWB.double().mean().item())
        assert_lively(model(*inputs(1)[0][:1], tracks=inputs(1)[0][1]))
    assert len(found) == 1
    assert config.merger == "static" or len(set(fractions)) > 4
