"""`evo2.Evo2` opens a file and its YAML here, scores, embeds and writes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.peers.checks import likeliest, mean_likelihood
from tests.peers.process import Arrays, run_in_peer, with_prefix
from tests.peers.reference import evo2_logits
from tests.peers.tiny import EVO2

pytestmark = pytest.mark.smoke

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 13), reason="evo2 ends at Python 3.12")
IDS = np.random.default_rng(0).integers(0, 512, (2, 40))
TEXTS, PROMPT = ["ACGTACGTTTGA", "GATTACAGA"], "ACGTTGCAACGTT"


def logits(weights: Arrays, ids: np.ndarray) -> np.ndarray:
    return evo2_logits(weights, EVO2, ids)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    settings = {"config": EVO2, "texts": TEXTS, "prompt": PROMPT}
    return run_in_peer("evo2_cases", tmp_path_factory.mktemp("peer"), settings, {"ids": IDS})


def test_it_ran_on_stand_ins(answers: Arrays) -> None:
    assert answers["served.evo2_device"] == 3  # one scoring, two writings
    assert answers["served.rotary"] > 0 and answers["served.device"] > 0


def test_it_reads_with_the_weights_of_the_file(answers: Arrays) -> None:
    weights = with_prefix(answers, "weights.")
    expected = np.stack([logits(weights, row) for row in IDS])
    size = np.abs(expected).max()
    assert np.abs(answers["logits"] - expected).max() < 1e-5 * size
    assert np.abs(answers["bf16"] - expected).max() < 0.1 * size
    assert answers["layer"].shape == (2, 40, 32) and np.isfinite(answers["layer"]).all()


def test_it_keeps_only_modes_and_frequencies_in_fp32(answers: Arrays) -> None:
    dtypes = with_prefix(answers, "dtype.").items()
    fine = {name.rsplit(".", 1)[-1] for name, dtype in dtypes if str(dtype) == "torch.float32"}
    assert fine == {"log_poles", "residues", "inv_freq"}


def test_it_scores(answers: Arrays) -> None:
    """Each text alone, and its first letter not at all."""
    weights = with_prefix(answers, "weights.")
    expected = [mean_likelihood(logits, weights, text, start=False) for text in TEXTS]
    np.testing.assert_allclose(answers["scores"], expected, rtol=1e-5)


def test_it_writes_with_and_without_a_cache(answers: Arrays) -> None:
    expected = likeliest(logits, with_prefix(answers, "weights."), PROMPT, 8)
    assert answers["written.cached"].tolist() == answers["written.whole"].tolist() == expected
