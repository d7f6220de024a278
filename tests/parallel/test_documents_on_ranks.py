"""Documents packed in rows that ranks share: each equals the document alone, and keeps to itself.

Four gloo ranks, double precision; the oracle is the dense model on every document by itself.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.documents import runs
from tests.parallel.document_cases import MODELS, PACKINGS, Outcome, alone, on_ranks, rounds
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

LAYOUTS = {"tp1-cp4": (1, 4, False), "tp2-cp2": (2, 2, True)}
every_case = pytest.mark.parametrize("name", MODELS)
every_packing = pytest.mark.parametrize("length", PACKINGS)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
dense = lru_cache(alone)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(layout, model, length) -> outcome, of each of four ranks, from one job."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks(on_ranks, 4, folder, list(LAYOUTS.values()), timeout=300)


def close(found: Tensor, expected: Tensor, what: str) -> None:
    """To 1e-12 of the largest number."""
    assert found.shape == expected.shape, what
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert error <= 1e-12, f"{what}: {error:.1e}"


def own(rank: Outcome, whole: Tensor) -> Tensor:
    """What a rank holds of whole rows, without padding."""
    return whole[:, rank.start : rank.start + rank.losses.shape[1]]


@pytest.mark.parametrize("context", [2, 4])
@pytest.mark.parametrize("length", [272, 40])
def test_the_packings_have_the_edges_that_they_promise(length, context):
    stretch = length // context
    inner = range(stretch, length, stretch)
    documents = [(start, stop) for _, start, stop in runs(PACKINGS[length].ids)]
    assert any(start in inner for start, _ in documents)
    assert any(start + 1 in inner for start, _ in documents)
    assert any(stop in inner and stop - start == 1 for start, stop in documents)
    assert any(start in inner and stop - start == 1 for start, stop in documents)
    inside = [n for n in inner for start, stop in documents if start < n and n + stretch < stop]
    assert inside or context == 2
    assert any(start < n - 1 and n + 1 < stop < length for n in inner for start, stop in documents)
    assert (0, length) in documents


@every_layout
def test_some_ranks_hold_nothing_but_padding(results, layout):
    for length, idle in ((9, {"tp1-cp4": 1, "tp2-cp2": 0}), (2, {"tp1-cp4": 2, "tp2-cp2": 2})):
        starts = [rank[layout, "S halo", length].start for rank in results]
        assert sum(start >= length for start in starts) == idle[layout]


@every_packing
@every_case
@every_layout
def test_a_document_on_ranks_equals_the_document_alone(results, layout, name, length):
    reference = dense(name, length)
    for at, rank in enumerate(results):
        outcome = rank[layout, name, length]
        for field in ("logits", "losses"):
            wanted = own(outcome, getattr(reference, field))
            if wanted.numel():
                found = getattr(outcome, field)[:, : wanted.shape[1]]
                close(found, wanted, f"{field} of rank {at}")


@every_packing
@every_case
@every_layout
def test_gradients_are_those_of_the_documents_alone(results, layout, name, length):
    """Also where ranks hold padding only, whose backward must still answer the others."""
    reference, tensor = dense(name, length), LAYOUTS[layout][0]
    for key, parameter in HyenaGLT(MODELS[name].config).named_parameters():
        parts = [rank[layout, name, length].gradients[key] for rank in results]
        found = cut_of(parameter).join(parts[:tensor])
        close(found, reference.gradients[key], key)
        assert all(torch.equal(part, parts[at % tensor]) for at, part in enumerate(parts)), key


@every_packing
@every_case
@every_layout
def test_changing_a_document_changes_no_bit_of_the_others(results, layout, name, length):
    """On any rank. One document of each row is changed at a time, and changes at every byte."""
    masks = rounds(PACKINGS[length].ids)
    assert torch.stack(masks).sum(0).eq(1).all()
    for number, mask in enumerate(masks):
        for rank in results:
            outcome = rank[layout, name, length]
            held = own(outcome, mask)
            before = outcome.logits[:, : held.shape[1]]
            after = outcome.changed[number][:, : held.shape[1]]
            assert torch.equal(after[~held], before[~held])
            assert (after[held] != before[held]).any(-1).all()
