"""Merged models whose weights are of half precision run, and decide in fp32 all the same."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    assert_lively,
    dna,
    lively_model,
    merged_config,
    tracks_for,
)

LENGTH = 192
ALL = KINDS | {"global": {"adaptive": True, "complexity": "global", "causal": False}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "half"])
@pytest.mark.parametrize("kind", ALL)
def test_a_model_of_half_precision_runs_forward_and_backward(kind: str, dtype: torch.dtype) -> None:
    """Probabilities stay fp32; every number is finite, and every parameter of the merger trains."""
    config = merged_config(NESTED, init_std=0.1, **ALL[kind])
    ids = dna(2, LENGTH)
    tracks = tracks_for(config, ids)
    model = lively_model(config, ids).to(dtype).train()
    output = model(ids, labels=ids, tracks=tracks)
    assert_lively(output)
    assert output.logits.dtype == dtype
    for merge in output.merges:
        assert merge.probability_LB is None or merge.probability_LB.dtype == torch.float32
    (output.loss + output.ratio_loss).backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("stages.", "byte_axis.")):
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == dtype
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", [k for k in KINDS if "trunk" in k])
def test_openings_by_bytes_alone_are_those_of_the_rounded_weights(kind: str) -> None:
    """Nothing but the weights is rounded: of fp32 copies of them the features are the same bits."""
    config = merged_config("S(M)S", **KINDS[kind])
    ids = dna(2, LENGTH)
    model = lively_model(config, ids).bfloat16()
    with torch.no_grad():
        found = model(ids).merges[0]
        wide = copy.deepcopy(model).float()(ids).merges[0]
    assert found.probability_LB is not None and wide.probability_LB is not None
    assert torch.equal(found.probability_LB, wide.probability_LB)
    assert torch.equal(found.chunks.opens_nWB, wide.chunks.opens_nWB)
