"""The model of Evo 2 runs here, and its tensors mean what our reading of them says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.peers.checks import silent_tensors
from tests.peers.process import Arrays, run_in_peer, with_prefix
from tests.peers.reference import evo2_logits
from tests.peers.tiny import EVO2

pytestmark = pytest.mark.smoke

IDS = np.random.default_rng(0).integers(0, 512, (2, 150))


def logits(weights: Arrays, ids: np.ndarray) -> np.ndarray:
    return evo2_logits(weights, EVO2, ids)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    settings = {"config": EVO2, "prompt": 140}
    return run_in_peer("vtx_cases", tmp_path_factory.mktemp("peer"), settings, {"ids": IDS})


def test_it_ran_on_stand_ins(answers: Arrays) -> None:
    assert answers["served.rotary"] == 1 + 1 + 10
    assert answers["served.device"] > 3 * (1 + 1 + 10)  # each Hyena layer, and building


def test_a_pass_is_what_the_tensors_say(answers: Arrays) -> None:
    weights = with_prefix(answers, "weights.")
    expected = np.stack([logits(weights, row) for row in IDS])
    assert answers["logits"].shape == (2, 150, 512) and answers["logits"].dtype == np.float32
    assert np.abs(answers["logits"] - expected).max() < 1e-5 * np.abs(expected).max()


def test_decoding_from_a_cache_is_the_pass(answers: Arrays) -> None:
    whole = answers["logits"]
    assert np.abs(answers["decoded"] - whole).max() < 1e-5 * np.abs(whole).max()


def test_every_tensor_has_a_say(answers: Arrays) -> None:
    """Else the agreement above would prove nothing of it."""
    assert silent_tensors(logits, with_prefix(answers, "weights."), IDS[0, :135]) == []
