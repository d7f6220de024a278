"""Conservation scores, and all else of `G`, are shared out over ranks without changing a number."""

from __future__ import annotations

from functools import lru_cache

import pytest

from megatron_hyena.layers.parameter import cut_of
from tests.parallel.genomic_cases import (
    FILTERS,
    LAYOUTS,
    LENGTH,
    PACKED,
    model_of,
    on_one,
    on_ranks,
)
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel
TOLERANCE = 1e-10

dense = lru_cache(on_one)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(layout, filter, packed) -> outcome, of each of four ranks."""
    return run_ranks(on_ranks, 4, tmp_path_factory.mktemp("ranks"))


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("packed", PACKED, ids=["whole", "packed"])
@pytest.mark.parametrize("filter_name", FILTERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scored_model_is_the_dense_one(results, layout, filter_name, packed):
    """Losses, and the gradient of every parameter, none of which is zero."""
    wanted = dense(filter_name, packed)
    ranks = [rank[layout, filter_name, packed] for rank in results]
    tensor, context = LAYOUTS[layout]
    assert {rank.start for rank in ranks} == {64 // context * r for r in range(context)}
    for rank in ranks:
        own = wanted.nats[:, rank.start : rank.start + rank.nats.shape[1]]
        held = own.shape[1]
        assert held == min(64 // context, LENGTH - rank.start)
        assert relative_error(rank.nats[:, :held], own) <= TOLERANCE
    for key, parameter in model_of(filter_name).named_parameters():
        full = cut_of(parameter).join([rank.gradients[key] for rank in ranks[:tensor]])
        assert wanted.gradients[key].norm() > 0, key
        assert relative_error(full, wanted.gradients[key]) <= TOLERANCE, key


def test_the_cases_are_different_ones():
    """Scores, documents and filters change the losses, or equality would say nothing."""
    plain = dense("implicit", False).nats
    for other in (("implicit", True), ("genomic", False), ("implicit", False, False)):
        assert relative_error(dense(*other).nats, plain) > 1e-3, other
