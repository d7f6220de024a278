"""Complexity of the whole document, for models that are not causal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.router import GlobalComplexity
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import OneRank
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.documents import numbered, runs
from tests.oracles.drawing import disturb, draw, weights
from tests.oracles.merged_models import (
    NESTED,
    assert_lively,
    dna,
    lively_model,
    merged_config,
    stage_of,
)
from tests.oracles.operators import Array

PAD = 1
GLOBAL = {"adaptive": True, "complexity": "global", "gamma": 5.0, "causal": False}
WINDOW, WIDTH = 4, 6


def estimator() -> GlobalComplexity:
    module = GlobalComplexity(WIDTH)
    initialise(module, 0, rank=0, size=1)
    module.double()
    disturb(module)
    return module


def axis_of(documents: Tensor, counted: Tensor, empty: Tensor) -> Axis:
    """All [L, B]. Places count from each document's start; empty positions stand for none."""
    place = torch.zeros_like(documents)
    for t in range(1, len(documents)):
        same = documents[t] == documents[t - 1]
        place[t] = torch.where(same, place[t - 1] + 1, 0)
    return Axis(place.masked_fill(empty, -1), counted & ~empty)


def by_loop(x: Array, documents: Array, counted: Array, module: GlobalComplexity) -> Array:
    """sigmoid(MLP(mean of the document's counted positions)) at each position of one row."""
    w, found = weights(module), np.zeros(len(x))
    for t in range(len(x)):
        members = [x[i] for i in range(len(x)) if documents[i] == documents[t] and counted[i]]
        mean = sum(members, np.zeros(x.shape[1])) / max(len(members), 1)
        hidden = np.maximum(w["weight_in"] @ mean + w["bias_in"], 0)
        found[t] = 1 / (1 + np.exp(-(w["weight_out"] @ hidden + w["bias_out"][0])))
    return found


def test_it_is_the_mean_of_the_document_whatever_lies_around() -> None:
    """Documents of many and of one window, empty slots, padding, windows and documents of it."""
    windows = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 3, 3], [0] * 9, [0, 1, 2, 3, 4, 5, 6, 7, 8]]).t()
    documents = windows.repeat_interleave(WINDOW, dim=0)
    length, rows = documents.shape
    generator = torch.Generator().manual_seed(0)
    empty = torch.rand(length, rows, generator=generator) < 0.3
    empty[::WINDOW] = False
    counted = torch.rand(length, rows, generator=generator) < 0.8
    counted[7 * WINDOW :, 0] = False  # a whole document that is padding
    axis, x = axis_of(documents, counted, empty), draw(length, rows, WIDTH)
    module = estimator()
    with torch.no_grad():
        found = module(x, axis, WINDOW, OneRank())
    for b in range(rows):
        one = (x[:, b].numpy(), documents[:, b].numpy(), (counted & ~empty)[:, b].numpy())
        np.testing.assert_allclose(found[:, b].numpy(), by_loop(*one, module), rtol=1e-12)
    assert len({round(c, 9) for c in found[:, 0].tolist()}) == 4


def test_every_counted_position_of_the_document_has_a_gradient_and_no_other() -> None:
    documents = torch.tensor([0, 0, 1, 1, 1]).repeat_interleave(WINDOW)[:, None]
    counted = torch.ones_like(documents, dtype=torch.bool)
    counted[-3:] = False
    axis = axis_of(documents, counted, torch.zeros_like(counted))
    x = draw(len(documents), 1, WIDTH).requires_grad_()
    found = estimator()(x, axis, WINDOW, OneRank())
    for t in range(len(documents)):
        (gradient,) = torch.autograd.grad(found[t, 0], x, retain_graph=True)
        reached = (gradient[:, 0] != 0).any(-1)
        assert torch.equal(reached, (documents == documents[t])[:, 0] & counted[:, 0])


@pytest.mark.parametrize("kind", [{}, {"router_input": "trunk"}, {"merger": "hnet"}])
def test_a_packed_document_merges_as_it_does_alone(kind: dict[str, str]) -> None:
    """In both stages; logits, openings and the gradients of the router."""
    config = merged_config(NESTED, slots=4, **GLOBAL, **kind)
    step = HyenaGLT(config).merging_multiple
    ids = dna(2, 5 * step)
    model = lively_model(config, ids)
    documents = numbered(5 * step, [[step, 3 * step], [4 * step]])
    packed = model(ids, document_ids=documents)
    assert_lively(packed)
    opens = packed.merges[0].chunks.opens_nWB.flatten(0, 1).t()
    for row, start, stop in runs(documents):
        here = (slice(row, row + 1), slice(start, stop))
        alone = model(ids[here])
        assert torch.equal(opens[here], alone.merges[0].chunks.opens_nWB.flatten(0, 1).t())
        torch.testing.assert_close(packed.logits[here], alone.logits, rtol=1e-10, atol=1e-10)
    model.train()
    total = model.weighted_losses(ids, ids, torch.ones(ids.shape), documents).sum()
    total.backward()
    for number in range(2):
        router = stage_of(model, number).router
        assert router is not None and router.complexity is not None
        for name, parameter in router.complexity.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_padding_is_no_part_of_the_mean() -> None:
    """The openings before it are those of more of it."""
    config = merged_config("(S)S", slots=4, router_input="trunk", **GLOBAL)
    ids = dna(2, 64)
    ids[:, 40:] = PAD
    model = lively_model(config, ids)
    opens = [
        model(part).merges[0].chunks.opens_nWB.flatten(0, 1)[:40] for part in (ids, ids[:, :48])
    ]
    assert torch.equal(*opens)
    assert 0.1 < opens[0].double().mean() < 0.9


def test_what_lies_behind_moves_openings_before() -> None:
    """That is what the causal kinds must not do, and why a causal model is refused."""
    config = merged_config("(S)S", slots=0, router_input="trunk", merge_ratio=0.5, **GLOBAL)
    ids = dna(4, 64)
    model = lively_model(config, ids)
    other = ids.clone()
    other[:, 40:] = ord("G")
    before, after = (model(i).merges[0].chunks.opens_nWB.flatten(0, 1)[:32] for i in (ids, other))
    assert not torch.equal(before, after)
    with pytest.raises(UserError, match=r"model\.complexity=global averages over the whole seq"):
        merged_config("(S)S", adaptive=True, complexity="global")
