"""The engine trains like one dense process of plain torch, whatever the layout and ZeRO stage.

Twenty steps in fp32. Layouts differ by the order of their sums only, about 3e-7 of a loss or norm;
what is asserted leaves room for little more.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from itertools import product

import pytest
import torch

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.parallel.engine_cases import (
    GLOBAL_BATCH,
    STEPS,
    Run,
    configure,
    train_dense,
    train_on_ranks,
)
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

TWO_RANKS = [
    Run(data=2, zero=0, pieces=2, model="odd"),
    Run(data=2, zero=1, pieces=4, model="odd"),
    Run(data=2, zero=3, recompute="block", model="odd"),
    Run(tensor=2, sequence=True, zero=1, packed=True),
    Run(tensor=2, sequence=True, zero=3, recompute="block"),
    Run(context=2, zero=0, packed=True, model="odd"),
    Run(context=2, zero=1, pieces=8, model="small"),
    Run(context=2, zero=2, recompute="MLW"),
    Run(context=2, zero=1, precision="bf16"),
    Run(tensor=2, sequence=True, zero=1, precision="bf16"),
]
CLIPPED = [Run(tensor=2, context=2, sequence=True, zero=z, pieces=2, steps=3) for z in range(4)]
"""Three steps are enough to see a stage clip, and what the clipped step leads to."""
FOUR_RANKS = [
    Run(tensor=2, context=2, sequence=True, zero=3, packed=True, recompute="block"),
    Run(context=2, data=2, zero=2, pieces=2, packed=True, model="odd"),
    *CLIPPED,
]
RUNS = TWO_RANKS + FOUR_RANKS
FP32 = [run for run in RUNS if run.precision == "fp32"]
BF16 = [run for run in RUNS if run.precision == "bf16"]
LAYOUTS = [
    Run(data=2),
    Run(tensor=2),
    Run(tensor=2, sequence=True),
    Run(context=2),
    Run(context=4),
    Run(tensor=2, context=2, sequence=True),
    Run(context=2, data=2),
    Run(tensor=2, data=2, sequence=True),
]
FIRST_LOSS, LOSS, NORM, DISTANCE = 1e-6, 2e-6, 5e-6, 1e-4
"""Relative deviations allowed: of the first loss, of the others, of gradient norms; of the final
weights, by the distance that each moved."""
dense = lru_cache(train_dense)


def every(runs):
    return pytest.mark.parametrize("run", runs, ids=str)


def on_ranks(folder, runs, timeout=400):
    """{run: [Trained of each rank]}; the runs of one size in one job."""
    results: dict = {}
    for size in sorted({run.size for run in runs}):
        mine = [run for run in runs if run.size == size]
        ranks = run_ranks(train_on_ranks, size, folder / f"of_{size}", mine, timeout=timeout)
        results |= {run: [rank[run] for rank in ranks] for run in mine}
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return on_ranks(tmp_path_factory.mktemp("ranks"), RUNS)


def relative(value, wanted):
    return abs(value - wanted) / abs(wanted)


def check_figures(run, reference, name=""):
    """First loss, every loss, every norm and the validation are the dense ones."""
    assert relative(run.losses[0], reference.losses[0]) <= FIRST_LOSS, name
    assert len(run.losses) == len(run.grad_norms) == len(reference.losses), name
    for loss, wanted in zip(run.losses, reference.losses, strict=True):
        assert relative(loss, wanted) <= LOSS, name
    for norm, wanted in zip(run.grad_norms, reference.grad_norms, strict=True):
        assert relative(norm, wanted) <= NORM, name
    assert relative(run.valid_loss, reference.valid_loss) <= LOSS, name


def check_weights(run, ranks, reference):
    """Adam turns rounding in a gradient near zero into a step of its own: compare as a whole."""
    config = configure(run)
    for key, parameter in HyenaGLT(config.model, seed=config.run.seed).named_parameters():
        weight = cut_of(parameter).join([rank.weights[key] for rank in ranks[: run.tensor]])
        moved = (reference.weights[key] - parameter.detach()).norm()
        assert (weight - reference.weights[key]).norm() <= DISTANCE * moved, (str(run), key)


def check_copies(ranks, name):
    """Every rank reports the same figures, to the bit."""
    first, *others = ranks
    for rank in others:
        assert rank.losses == first.losses, name
        assert rank.grad_norms == first.grad_norms, name
        assert rank.valid_loss == first.valid_loss, name


@every(RUNS)
def test_all_ranks_report_the_same(trained, run):
    check_copies(trained[run], str(run))


@every(FP32)
def test_losses_and_norms_are_the_dense_ones(trained, run):
    check_figures(trained[run][0], dense(run.model, run.packed, run.steps))


@every(FP32)
def test_final_weights_are_the_dense_ones(trained, run):
    check_weights(run, trained[run], dense(run.model, run.packed, run.steps))


def test_the_reference_learns_and_clips():
    """Otherwise the comparison would prove little."""
    for model, packed in {(run.model, run.packed) for run in RUNS}:
        reference = dense(model, packed, STEPS)
        assert reference.losses[-1] < reference.losses[0] - 1.5
        assert min(reference.grad_norms) > 0.5
        # Adam does not feel a constant factor on gradients; clipping must change from step to step.
        assert max(reference.grad_norms) > 3 * min(reference.grad_norms)


def test_documents_change_the_reference():
    plain, packed = dense("even", False, STEPS), dense("even", True, STEPS)
    assert max(map(relative, packed.grad_norms, plain.grad_norms)) > 1e-2


def test_every_zero_stage_clips_by_the_same_norm(trained):
    """The whole gradient's: over tensor ranks, replicas and micro-batches."""
    norms = [trained[run][0].grad_norms for run in CLIPPED]
    for of_stage in norms:
        assert of_stage == pytest.approx(dense("even", False, 3).grad_norms, rel=1e-6)
        assert of_stage == pytest.approx(norms[0], rel=1e-6)


@every(BF16)
def test_bf16_is_near_fp32_over_fp32_state(trained, run):
    found, reference = trained[run][0], dense(run.model, run.packed, run.steps)
    for loss, wanted in zip(found.losses, reference.losses, strict=True):
        assert relative(loss, wanted) <= 2e-3
    rounding = max(map(relative, found.grad_norms, reference.grad_norms))
    assert rounding > 1e-4, "bfloat16 was not used"  # fp32 is below 1e-6
    assert found.dtypes == {torch.float32}
    modes = [w for name, w in found.weights.items() if "log_rate" in name or "residue" in name]
    assert len(modes) == 3
    for weight in modes:
        assert not torch.equal(weight, weight.bfloat16().float()), "rounded to bfloat16"


def matrix_of(run):
    """The small model in the layout of `run`: ZeRO x recomputation x micro-batches."""
    return [
        replace(run, zero=z, recompute=r, pieces=n, packed=z % 2 == 1, model="small")
        for z, r, n in product(range(4), ("none", "block"), (1, GLOBAL_BATCH // run.data))
    ]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@every(LAYOUTS)
def test_the_whole_matrix(tmp_path, run):
    results = on_ranks(tmp_path, matrix_of(run), timeout=3500)
    for one, ranks in results.items():
        reference = dense(one.model, one.packed, one.steps)
        check_copies(ranks, str(one))
        check_figures(ranks[0], reference, str(one))
        check_weights(one, ranks, reference)
