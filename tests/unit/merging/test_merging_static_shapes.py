"""Shapes follow from the configuration alone: one compiled graph, 1 to K slots in a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.model.hyena_glt import HyenaGLT, HyenaGLTOutput
from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    assert_lively,
    boundaries,
    dna,
    lively_model,
    merged_config,
)

LENGTH = 128


def inputs(count: int = 20) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Random letters, and the extremes: one letter only, any bytes, no boundary, all boundaries."""
    found = []
    for seed in range(count):
        ids, track = dna(2, LENGTH, seed), boundaries(2, LENGTH, seed)
        if seed == 1:
            ids, track = torch.full_like(ids, ord("A")), torch.zeros_like(track)
        if seed == 2:
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(2, 256, ids.shape, generator=generator)
            track = torch.full_like(track, 2)
        found.append((ids, {"boundaries": track}))
    return found


def counting(graphs: list[int]) -> Callable[..., Any]:
    """A compiler that runs what it is given, and notes its calls."""

    def backend(graph: torch.fx.GraphModule, _examples: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return backend


@pytest.mark.parametrize(
    ("kind", "gradients"),
    [
        pytest.param("wcc", False, marks=pytest.mark.slow),
        ("wcc", True),
        pytest.param("adaptive kmer", True, marks=pytest.mark.slow),
        pytest.param("adaptive window of the trunk", True, marks=pytest.mark.slow),
        pytest.param("hnet", True, marks=pytest.mark.slow),
        ("static", True),
        pytest.param("precomputed", True, marks=pytest.mark.slow),
    ],
)
def test_a_merged_model_is_one_graph_for_all_inputs(kind: str, gradients: bool) -> None:
    """Of the whole forward pass, nested stages of attention included; never compiled again."""
    config = merged_config("A(W(A))W", **KINDS[kind])
    model = lively_model(config, dna(2, LENGTH))
    torch._dynamo.reset()
    graphs: list[int] = []
    compiled = torch.compile(
        lambda ids, tracks: model(ids, tracks=tracks).logits,
        fullgraph=True,
        dynamic=False,
        backend=counting(graphs),
    )
    with torch.set_grad_enabled(gradients):
        for ids, tracks in inputs():
            assert torch.equal(compiled(ids, tracks), model(ids, tracks=tracks).logits)
    assert len(graphs) == 1
    assert graphs[0] > 100


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
        for ids, tracks in inputs():
            output = model(ids, tracks=tracks)
            found.add(tuple(shapes(output)))
            assert_kept_within_the_budget(model, output)
            fractions.append(output.merges[0].chunks.opens_nWB.double().mean().item())
        assert_lively(model(*inputs(1)[0][:1], tracks=inputs(1)[0][1]))
    assert len(found) == 1
    assert config.merger == "static" or len(set(fractions)) > 10
