"""What is saved is the model, and going on from it is going on: whatever the layout."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from megatron_hyena.checkpoint.dense import load_dense
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.parallel.checkpoint_cases import (
    GONE_ON,
    SAVED,
    Job,
    resume_and_go_on,
    save_and_go_on,
    save_often,
    write_corpus,
)
from tests.parallel.engine_cases import Run, configure
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

LOSS, NORM = 1e-6, 2e-6
"""Relative deviations allowed of a run that goes on in another layout."""
SAME = [
    *(Run(data=2, zero=stage, model="odd") for stage in range(4)),
    Run(context=2, zero=3, model="odd"),
    Run(tensor=2, sequence=True, zero=1, recompute="block"),
    Run(tensor=2, sequence=True, zero=3),
]
"""Saved, and gone on with in the same layout."""
ODD_CHANGES = [
    (Run(data=2, zero=0, model="odd"), Run(data=2, zero=3, model="odd")),
    (Run(data=2, zero=3, model="odd"), Run(context=2, zero=1, pieces=2, model="odd")),
]
"""ZeRO 3 pads its shares of these weights."""
LAYOUTS = [
    Run(tensor=2, context=2, sequence=True, zero=3, recompute="block"),
    Run(context=4, zero=1),
    Run(data=4, zero=2, pieces=2),
    Run(tensor=4, sequence=True, zero=1),
    Run(tensor=2, data=2, sequence=True, zero=3),
    Run(context=2, data=2, zero=0, recompute="SA"),
    Run(zero=1, pieces=2),
]
"""Six of four ranks, and a single rank."""
RING = list(zip(LAYOUTS, [*LAYOUTS[1:], LAYOUTS[0]], strict=True))
CHANGES = [*ODD_CHANGES, *RING]
"""(saved, gone on with); in the ring each layout is once on either side."""
MATRIX = list(product(LAYOUTS, LAYOUTS))
BEGUN = {run: Job(run, str(run), seed) for seed, run in enumerate([*SAME, *LAYOUTS])}
"""Every saved run has weights and data of its own."""


def going_on(saved, run):
    """The layout `run` for what was begun in the layout `saved`."""
    return replace(BEGUN[saved], run=run)


def each(pairs):
    names = [f"{saved} as {run}" for saved, run in pairs]
    return pytest.mark.parametrize(("saved", "run"), pairs, ids=names)


def on_ranks(function, jobs, folder, path, timeout=500):
    """{job: [Continued of each rank]}; the jobs of one size on the same, fresh processes."""
    results: dict = {}
    for size in sorted({job.run.size for job in jobs}):
        mine = [job for job in jobs if job.run.size == size]
        ranks = run_ranks(function, size, path / f"of_{size}", mine, folder, timeout=timeout)
        results |= {job: [rank[job] for rank in ranks] for job in mine}
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the shards and all runs."""
    path = tmp_path_factory.mktemp("runs")
    write_corpus(path)
    return path


@pytest.fixture(scope="module")
def before(folder, tmp_path_factory):
    """{job: the run around its checkpoint, rank by rank}."""
    path = tmp_path_factory.mktemp("saving")
    return on_ranks(save_and_go_on, list(BEGUN.values()), folder, path)


@pytest.fixture(scope="module")
def after(folder, before, tmp_path_factory):
    """{job: what went on, rank by rank}."""
    path = tmp_path_factory.mktemp("resuming")
    jobs = [going_on(*pair) for pair in [*((run, run) for run in SAME), *CHANGES]]
    return on_ranks(resume_and_go_on, jobs, folder, path)


def whole(job, ranks, field="state"):
    """{kind/name: tensor} put together from tensor ranks; all copies must agree to the bit."""
    model = HyenaGLT(configure(job.run, job.keys(Path())).model)
    cuts = {name: cut_of(parameter) for name, parameter in model.named_parameters()}
    full = {}
    for key in getattr(ranks[0], field):
        cut, parts = cuts[key.split("/")[1]], [getattr(rank, field)[key] for rank in ranks]
        for at, part in enumerate(parts):
            assert torch.equal(part, parts[0 if cut.dim is None else at % job.run.tensor]), key
        full[key] = cut.join(parts[: job.run.tensor])
    assert len(full) == 3 * len(cuts)  # weights and two moments
    return full


def check_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert torch.equal(found[key], tensor), key


def check_going_on(saved, run, begun, gone_on):
    """The state that was saved, to the bit; then the losses and norms of the run that went on."""
    start, job = BEGUN[saved], going_on(saved, run)
    check_equal(whole(job, gone_on), whole(start, begun))
    wanted = begun[0].figures
    assert len(wanted) == GONE_ON
    for rank in gone_on:
        assert [loss for loss, _ in rank.figures] == pytest.approx([x for x, _ in wanted], rel=LOSS)
        assert [norm for _, norm in rank.figures] == pytest.approx([x for _, x in wanted], rel=NORM)


@each([(run, run) for run in SAME])
def test_the_same_layout_goes_on_equal_to_the_bit(before, after, saved, run):
    begun, gone_on = before[BEGUN[saved]], after[going_on(saved, run)]
    for old, new in zip(begun, gone_on, strict=True):
        check_equal(new.state, old.state)
        assert new.figures == old.figures
        check_equal(new.last_state, old.last_state)


@each(CHANGES)
def test_another_layout_goes_on_alike(before, after, saved, run):
    check_going_on(saved, run, before[BEGUN[saved]], after[going_on(saved, run)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_layout_goes_on_from_every_other(before, folder, tmp_path):
    jobs = [going_on(*pair) for pair in MATRIX]
    results = on_ranks(resume_and_go_on, jobs, folder, tmp_path, timeout=3000)
    for saved, run in MATRIX:
        check_going_on(saved, run, before[BEGUN[saved]], results[going_on(saved, run)])


def test_runs_differ_and_move(before):
    """Otherwise going on would prove little."""
    figures = [ranks[0].figures for ranks in before.values()]
    for one in figures:
        for other in figures:
            assert one is other or abs(one[0][0] / other[0][0] - 1) > 1e-5
    for job, ranks in before.items():
        last = whole(job, ranks, "last_state")
        for key, tensor in whole(job, ranks).items():
            still = ".conservation." in key  # there is no track
            assert torch.equal(tensor, last[key]) is still, key


@pytest.mark.parametrize("run", BEGUN, ids=str)
def test_the_dense_model_of_a_checkpoint_has_its_weights(before, folder, run):
    job = BEGUN[run]
    model, found = load_dense(folder / job.name)
    assert found == folder / job.name / "checkpoints" / f"step_{SAVED:08d}"
    saved = whole(job, before[job])
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, saved[f"weight/{key}"]), key


def test_the_newest_two_are_kept_and_leftovers_removed(folder, tmp_path):
    job = Job(Run(tensor=2, sequence=True), "often", 0)
    ranks = run_ranks(save_often, 2, tmp_path, job, 2, folder, timeout=400)
    first, second, third, again = ranks[0]
    assert first == ["step_00000001"]
    assert second == ["step_00000001", "step_00000002"]
    assert third == again == ["step_00000002", "step_00000003"]
