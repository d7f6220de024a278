"""`evo` opens a folder laid out as on the Hugging Face hub here, scores and writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.peers.checks import likeliest, mean_likelihood
from tests.peers.process import Arrays, run_in_peer, with_prefix
from tests.peers.reference import evo1_logits
from tests.peers.tiny import EVO1

pytestmark = pytest.mark.smoke

IDS = np.random.default_rng(0).integers(0, 512, (2, 40))
TEXTS, PROMPT = ["ACGTACGTTTGA", "GATTACAGAGGC"], "ACGTTGCAACGTT"
FREQUENCIES = "blocks.1.inner_mha_cls.rotary_emb.inv_freq"


def logits(weights: Arrays, ids: np.ndarray) -> np.ndarray:
    return evo1_logits(weights, EVO1, ids)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    settings = {"config": EVO1, "texts": TEXTS, "prompt": PROMPT}
    return run_in_peer("evo_model_cases", tmp_path_factory.mktemp("peer"), settings, {"ids": IDS})


@pytest.fixture(scope="module")
def weights(answers: Arrays) -> Arrays:
    """Those of the folder; `evo` rounds the frequencies to bf16 as it reads them."""
    stored = with_prefix(answers, "weights.")
    rounded = torch.from_numpy(stored[FREQUENCIES]).bfloat16().float().numpy()
    return stored | {FREQUENCIES: rounded}


def test_it_ran_on_stand_ins(answers: Arrays) -> None:
    assert answers["served.rotary"] == answers["served.flash_attn"] > 0


def test_it_reads_with_the_weights_of_the_folder(answers: Arrays, weights: Arrays) -> None:
    expected = np.stack([logits(weights, row) for row in IDS])
    assert np.abs(answers["logits"] - expected).max() < 1e-5 * np.abs(expected).max()


def test_in_bf16_it_ignores_the_stored_frequencies(answers: Arrays, weights: Arrays) -> None:
    """Then RoPE has base 10000, whatever the folder says."""
    own = weights | {FREQUENCIES: 10000.0 ** (-np.arange(8) / 8)}
    expected, stored = (np.stack([logits(w, row) for row in IDS]) for w in (own, weights))
    size = np.abs(expected).max()
    assert np.abs(answers["bf16"] - expected).max() < 0.1 * size
    assert np.abs(answers["bf16"] - stored).max() > 0.2 * size


def test_it_keeps_only_modes_in_fp32(answers: Arrays) -> None:
    dtypes = with_prefix(answers, "dtype.").items()
    fine = {name.rsplit(".", 1)[-1] for name, dtype in dtypes if str(dtype) == "torch.float32"}
    assert fine == {"poles", "residues"}


def test_it_scores(answers: Arrays, weights: Arrays) -> None:
    """Behind a token 0, so that the first letter counts."""
    expected = [mean_likelihood(logits, weights, text, start=True) for text in TEXTS]
    np.testing.assert_allclose(answers["scores"], expected, rtol=1e-5)


def test_it_writes_from_a_cache(answers: Arrays, weights: Arrays) -> None:
    assert answers["written"].tolist() == likeliest(logits, weights, PROMPT, 8)
