"""Conservation scores, and all else of `G`, are shared out over ranks without changing a number."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from megatron_hyena.layers.parameter import cut_of
from tests.parallel.genomic_cases import FILTERS, LAYOUTS, PACKED, layer_of, on_one, on_ranks
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
def test_a_scored_layer_is_the_dense_one(results, layout, filter_name, packed):
    """Outputs, and the gradient of every parameter, none of which is zero."""
    wanted = dense(filter_name, packed)
    ranks = [rank[layout, filter_name, packed] for rank in results]
    tensor, context = LAYOUTS[layout]
    assert {rank.start for rank in ranks} == {64 // context * r for r in range(context)}
    for rank in ranks:
        stop = rank.start + len(rank.output)
        assert relative_error(rank.output, wanted.output[rank.start : stop]) <= TOLERANCE
    for key, parameter in layer_of(filter_name).named_parameters():
        full = cut_of(parameter).join([rank.gradients[key] for rank in ranks[:tensor]])
        assert wanted.gradients[key].norm() > 0, key
        assert relative_error(full, wanted.gradients[key]) <= TOLERANCE, key


@pytest.mark.parametrize("filter_name", FILTERS)
def test_the_cases_are_different_ones(filter_name):
    """Documents and the kind of filter change the outputs, or equality would say nothing."""
    whole, packed = (dense(filter_name, packed).output for packed in PACKED)
    assert relative_error(packed, whole) > 1e-2
    assert not torch.equal(dense("implicit", False).output, dense("genomic", False).output)
