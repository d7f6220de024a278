"""The bytes that `--dry-run` predicts are, exactly, those that the counters of a rank come to."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_hyena.model.traffic import predict
from tests.parallel.ranks import run_ranks
from tests.parallel.traffic_cases import CASES, configure, count_all

pytestmark = pytest.mark.parallel


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """[{case: (context rank, tensor rank, {kind: {direction: bytes}})}] of each rank."""
    return run_ranks(count_all, 4, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CASES)
def test_counters_equal_the_prediction(counted, name):
    for rank in counted:
        context_rank, tensor_rank, sent = rank[name]
        predicted = predict(configure(name), context_rank, tensor_rank)
        assert sent == {kind: dataclasses.asdict(one) for kind, one in predicted.items()}


@pytest.mark.parametrize("name", ["cp4", "tp2spcp2"])
def test_the_modal_state_stays_below_its_bound(counted, name):
    """LI: the hand-off sends at most 128 (N - 1) B D bytes beside the featurizer's halo."""
    config = configure(name)
    ranks, width = config.parallel.context, 32 // config.parallel.tensor
    bound = 128 * (ranks - 1) * 2 * width
    featurizer = 2 * 3 * width * 2 * 4
    for rank in counted:
        context_rank, _, sent = rank[name]
        layer = sent["L"]["forward"]
        residual = _tensor_bytes(config)
        assert 0 < layer - residual - (featurizer if context_rank < ranks - 1 else 0) <= bound


def _tensor_bytes(config):
    """Entering and leaving the split region, forward, by hand: [l, B, h] in fp32, twice."""
    tensor, length = config.parallel.tensor, 152 // config.parallel.context
    return 2 * (tensor - 1) * length * 2 * 32 * 4 // tensor
