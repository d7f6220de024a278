"""What is saved is the model, and going on from it is going on: whatever the layout."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena.checkpoint.dense import load_dense
from megatron_hyena.layers.parameter import cut_of
from tests.parallel.checkpoint_cases import resume_and_go_on, save_and_go_on, save_often
from tests.parallel.engine_cases import EVEN, ODD, layout
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

SAVES = {f"dp2-zero{stage}": layout(ODD, zero=stage) for stage in range(4)} | {
    "tp2sp-zero1": layout(EVEN, 2, True, parallel_recompute="block"),
    "tp2sp-zero3": layout(EVEN, 2, True, 3),
}
OTHER_LAYOUT = {
    "tp2sp-zero1 as dp2-zero2": ("tp2sp-zero1", layout(EVEN, zero=2)),
    "tp2sp-zero3 as dp2-zero1": ("tp2sp-zero3", layout(EVEN, zero=1)),
    "dp2-zero3 as dp2-zero1": ("dp2-zero3", layout(ODD, zero=1, micro=1)),
    "dp2-zero0 as dp2-zero3": ("dp2-zero0", layout(ODD, zero=3)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    return run_ranks(
        save_and_go_on, 2, tmp_path_factory.mktemp("ranks"), SAVES, folder, timeout=240
    )


@pytest.fixture(scope="module")
def resumed(folder, saved, tmp_path_factory):
    """In fresh processes."""
    resumes = {name: (name, overrides) for name, overrides in SAVES.items()} | OTHER_LAYOUT
    ranks = tmp_path_factory.mktemp("ranks")
    return run_ranks(resume_and_go_on, 2, ranks, resumes, folder, timeout=240)


@pytest.mark.parametrize("name", SAVES)
def test_resuming_is_equal_to_the_bit(saved, resumed, name):
    for before, after in zip(saved, resumed, strict=True):
        assert after[name].figures == before[name].figures
        for key, weight in before[name].last_weights.items():
            assert torch.equal(after[name].last_weights[key], weight), key


@pytest.mark.parametrize("name", OTHER_LAYOUT)
def test_another_layout_goes_on_alike(saved, resumed, name):
    source = OTHER_LAYOUT[name][0]
    for before, after in zip(saved, resumed, strict=True):
        assert after[name].figures == [
            pytest.approx(figures, rel=1e-5) for figures in before[source].figures
        ]
        assert after[name].figures[0][0] == pytest.approx(before[source].figures[0][0], rel=1e-6)


@pytest.mark.parametrize("name", SAVES)
def test_the_dense_model_of_a_checkpoint_has_its_weights(saved, folder, name):
    model, found = load_dense(folder / name)
    assert found == folder / name / "checkpoints" / "step_00000003"
    ranks = saved if name.startswith("tp2") else saved[:1]
    for key, parameter in model.named_parameters():
        whole = cut_of(parameter).join([rank[name].weights[key] for rank in ranks])
        assert torch.equal(parameter, whole), key


def test_the_newest_two_are_kept_and_leftovers_removed(tmp_path):
    overrides = [*layout(EVEN, 2, True), "checkpoint.keep=2"]
    first, second, third, again = run_ranks(
        save_often, 2, tmp_path / "ranks", overrides, tmp_path / "run"
    )[0]
    assert first == ["step_00000001"]
    assert second == ["step_00000001", "step_00000002"]
    assert third == again == ["step_00000002", "step_00000003"]
