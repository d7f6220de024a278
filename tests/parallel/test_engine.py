"""The engine trains like one dense process of plain torch, whatever the layout and ZeRO stage."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.parallel.engine_cases import EVEN, ODD, configure, layout, train_dense, train_on_ranks
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel


TWO_RANKS = {f"dp2-zero{stage}": layout(ODD, zero=stage) for stage in range(4)} | {
    "tp2-zero1": layout(EVEN, 2),
    "tp2sp-zero0": layout(EVEN, 2, True, 0),
    "tp2sp-zero1": layout(EVEN, 2, True, parallel_recompute="block"),
    "tp2sp-zero3": layout(EVEN, 2, True, 3, parallel_recompute="block"),
    "tp2sp-zero1-micro1": layout(EVEN, 2, True, micro=1),
    "tp2sp-zero1-micro8": layout(EVEN, 2, True, micro=8),
    "tp2sp-zero1-bf16": layout(EVEN, 2, True, train_precision="bf16"),
    "dp2-zero3-bf16": layout(ODD, zero=3, train_precision="bf16"),
}
FOUR_RANKS = {f"tp2sp-dp2-zero{stage}": layout(EVEN, 2, True, stage) for stage in (0, 1, 3)}
RUNS = TWO_RANKS | FOUR_RANKS
FP32 = [name for name in RUNS if "bf16" not in name]
BF16 = [name for name in RUNS if "bf16" in name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{run: [Trained of each rank]}."""
    results: dict = {}
    for size, runs in ((2, TWO_RANKS), (4, FOUR_RANKS)):
        ranks = run_ranks(train_on_ranks, size, tmp_path_factory.mktemp("ranks"), runs, timeout=300)
        results |= {name: [rank[name] for rank in ranks] for name in runs}
    return results


@pytest.fixture(scope="module")
def dense():
    models = {"odd": train_dense(ODD), "even": train_dense(EVEN)}
    return {name: models["odd" if name.startswith("dp2") else "even"] for name in RUNS}


def relative(value, wanted):
    return abs(value - wanted) / abs(wanted)


@pytest.mark.parametrize("name", RUNS)
def test_all_ranks_report_the_same(trained, name):
    first, *others = trained[name]
    for rank in others:
        assert (rank.losses, rank.grad_norms, rank.valid_loss) == (
            first.losses,
            first.grad_norms,
            first.valid_loss,
        )


@pytest.mark.parametrize("name", FP32)
def test_losses_and_norms_are_the_dense_ones(trained, dense, name):
    run, reference = trained[name][0], dense[name]
    assert relative(run.losses[0], reference.losses[0]) <= 1e-6
    for loss, wanted in zip(run.losses, reference.losses, strict=True):
        assert relative(loss, wanted) <= 1e-5
    for norm, wanted in zip(run.grad_norms, reference.grad_norms, strict=True):
        assert relative(norm, wanted) <= 1e-5
    assert relative(run.valid_loss, reference.valid_loss) <= 1e-5


def test_the_reference_learns_and_clips(dense):
    """Otherwise the comparison would prove little."""
    for reference in dense.values():
        assert reference.losses[-1] < reference.losses[0] - 0.2
        assert min(reference.grad_norms) > 0.5


@pytest.mark.parametrize("name", FP32)
def test_final_weights_are_the_dense_ones(trained, dense, name):
    config = configure(RUNS[name])
    ranks = trained[name][: config.parallel.tensor]
    for key, parameter in HyenaGLT(config.model, seed=config.run.seed).named_parameters():
        weight = cut_of(parameter).join([rank.weights[key] for rank in ranks])
        wanted, start = dense[name].weights[key], parameter.detach()
        # Adam turns rounding in a gradient near zero into a step of its own: compare as a whole,
        # and relative to the distance moved.
        assert (weight - wanted).norm() <= 1e-4 * (wanted - start).norm(), key


def test_micro_batches_do_not_matter(trained):
    ones, whole = trained["tp2sp-zero1-micro1"][0], trained["tp2sp-zero1-micro8"][0]
    assert relative(ones.losses[0], whole.losses[0]) <= 1e-6
    assert relative(ones.grad_norms[0], whole.grad_norms[0]) <= 1e-5
    assert relative(ones.losses[-1], whole.losses[-1]) <= 1e-5


@pytest.mark.parametrize("name", BF16)
def test_bf16_is_near_fp32_over_fp32_state(trained, dense, name):
    run, reference = trained[name][0], dense[name]
    for loss, wanted in zip(run.losses, reference.losses, strict=True):
        assert relative(loss, wanted) <= 0.02
    rounding = max(map(relative, run.grad_norms, reference.grad_norms))
    assert rounding > 1e-4, "bfloat16 was not used"  # fp32 is below 1e-6
    assert run.dtypes == {torch.float32}
    modes = [w for name, w in run.weights.items() if "log_rate" in name or "residue" in name]
    assert len(modes) == 2
    for weight in modes:
        assert not torch.equal(weight, weight.bfloat16().float()), "rounded to bfloat16"
