"""Merged stages under the engine: the dense model's chunks, rates and losses, step by step.

Ten steps in fp32; openings are hard decisions, so the counts of each step must be equal, not near.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from tests.parallel.engine_cases import Run, save_and_resume, train_dense, train_on_ranks
from tests.parallel.ranks import run_ranks
from tests.parallel.test_engine import LOSS, NORM, check_copies, check_weights, relative

pytestmark = pytest.mark.parallel

STEPS = 10
MERGED = Run(model="merged", steps=STEPS)
TWO_RANKS = [
    replace(MERGED, data=2, zero=2, pieces=2),
    replace(MERGED, tensor=2, sequence=True, zero=1, recompute="block"),
    replace(MERGED, context=2, zero=3, pieces=4),
    replace(MERGED, tensor=2, sequence=True, zero=1, precision="bf16"),
    replace(MERGED, context=2, zero=1, precision="bf16"),
]
FOUR_RANKS = [
    replace(MERGED, tensor=2, context=2, sequence=True, zero=1, pieces=2),
    replace(MERGED, context=2, data=2, zero=3, recompute="MLA"),
]
RUNS = TWO_RANKS + FOUR_RANKS
dense = lru_cache(train_dense)
every = pytest.mark.parametrize("run", RUNS, ids=str)
fp32 = pytest.mark.parametrize("run", [r for r in RUNS if r.precision == "fp32"], ids=str)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    results: dict = {}
    for size, runs in ((2, TWO_RANKS), (4, FOUR_RANKS)):
        ranks = run_ranks(train_on_ranks, size, folder / f"of_{size}", runs, timeout=400)
        results |= {run: [rank[run] for rank in ranks] for run in runs}
    return results


def check_counts(figures, wanted):
    """What is counted is equal; the shift follows the mean complexity, which is of fp32 numbers."""
    assert figures["shift"] == pytest.approx(wanted["shift"], abs=1e-5)
    assert figures | {"shift": 0.0} == wanted | {"shift": 0.0}


@fp32
def test_chunks_and_rates_are_the_dense_ones(trained, run):
    reference = dense("merged", False, STEPS)
    for rank in trained[run]:
        for (figures,), (wanted,) in zip(rank.merging, reference.merging, strict=True):
            check_counts(figures, wanted)
        for name, value in reference.rates.items():
            if name.endswith(("complexity", "shift")):  # with the mean of fp32 numbers
                assert rank.rates[name].item() == pytest.approx(value.item(), rel=1e-6)
            else:
                assert torch.equal(rank.rates[name], value), name


@fp32
def test_losses_norms_and_weights_are_the_dense_ones(trained, run):
    reference = dense("merged", False, STEPS)
    ranks = trained[run]
    check_copies(ranks, str(run))
    for loss, wanted in zip(ranks[0].losses, reference.losses, strict=True):
        assert relative(loss, wanted) <= LOSS
    for norm, wanted in zip(ranks[0].grad_norms, reference.grad_norms, strict=True):
        assert relative(norm, wanted) <= NORM
    assert relative(ranks[0].valid_loss, reference.valid_loss) <= LOSS
    check_weights(run, ranks, reference)


@every
def test_the_first_step_opens_the_same_chunks_in_every_precision(trained, run):
    """From equal weights a router of bytes alone decides alike in bf16 too, and starts alike."""
    ((wanted,), *_) = dense("merged", False, STEPS).merging
    for rank in trained[run]:
        ((figures,), *_) = rank.merging
        check_counts(figures, wanted)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    return run_ranks(save_and_resume, 2, folder, str(folder / "checkpoints"))


def test_a_checkpoint_restores_the_rates_to_the_bit(resumed):
    """Saved after three steps in one layout, gone on with in two, one of them the same."""
    for rank in resumed:
        saved, *others = rank["rates"]
        assert len(saved) == 3
        assert saved["stages.0.router.rate.shift"] != 0
        for loaded in others:
            for name, value in saved.items():
                assert torch.equal(loaded[name], value), name


def test_training_goes_on_from_a_checkpoint_as_without_it(resumed):
    for rank in resumed:
        straight, same, other = rank["next"]
        assert same == straight
        assert other[0] == pytest.approx(straight[0], rel=LOSS)
        assert other[1] == straight[1]


def test_the_dense_model_of_a_checkpoint_has_its_rates(resumed):
    saved, dense_state = resumed[0]["rates"][0], resumed[0]["dense"]
    for name, value in saved.items():
        assert torch.equal(dense_state[name], value), name


def test_the_reference_merges_and_learns():
    reference = dense("merged", False, STEPS)
    kept = [figures["kept"] for (figures,) in reference.merging]
    assert len(set(kept)) == STEPS
    assert all(0.2 < fraction < 0.7 for fraction in kept)
    assert reference.losses[-1] < reference.losses[0] - 0.5
