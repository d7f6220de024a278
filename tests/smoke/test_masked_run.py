"""The real program with `train.objective=mlm`: it learns, goes on exactly, and is not mistaken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_hyena.checkpoint.format import find_checkpoints
from pretrain.evaluate import main as evaluate
from tests.smoke.program import Program, metrics

pytestmark = [pytest.mark.smoke, pytest.mark.parallel]

STEPS, STOP = 30, 12
TWO = ("parallel.tensor=2", "parallel.sequence=true")


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory):
    """start(ranks, run folder, *overrides) -> finished Program."""
    folder = tmp_path_factory.mktemp("masked")
    config = folder / "run.yaml"
    config.write_text(f"""
model: {{pattern: "S(LA)0.25M", hidden_size: 32, num_heads: 2, num_filter_groups: 2,
         vocab_size: 128, mr_filter_length: 16, window: 32, causal: false}}
data: {{train: {corpus}/train, valid: {corpus}/valid, test: {corpus}/test,
        sequence_length: 256, mask_span: 2}}
train: {{steps: {STEPS}, global_batch_size: 4, micro_batch_size: 2, valid_sequences: 5,
         objective: mlm}}
optim: {{lr: 3.0e-3, warmup_steps: 3}}
log: {{every: 1}}
""")
    started: list[Program] = []

    def start(ranks: int, run: Path, *overrides: str, status: int = 0) -> Program:
        arguments = [str(config), f"run.output_dir={run}", *overrides]
        started.append(Program(ranks, arguments, folder / f"program_{len(started)}"))
        assert started[-1].finish() == [status] * ranks, started[-1].output()
        return started[-1]

    yield start
    for program in started:
        program.kill()


@pytest.fixture(scope="module")
def runs(start, tmp_path_factory) -> tuple[Path, Path]:
    """One run to the end, and one that was stopped."""
    folder = tmp_path_factory.mktemp("runs")
    start(1, folder / "whole")
    start(1, folder / "begun", f"train.stop_after={STOP}")
    return folder / "whole", folder / "begun"


def test_the_loss_of_hidden_bases_falls(runs):
    records = metrics(runs[0])
    assert len(records) == STEPS and records[0]["loss"] > 4.5
    assert records[-1]["loss"] < 2.8  # on the way from ln 128 = 4.85 to ln 4 = 1.39
    (validation,) = metrics(runs[0], "validation.jsonl")
    assert 1.3 < validation["valid_loss"] < 2.8


@pytest.mark.parametrize(("ranks", "layout"), [(1, ()), (2, TWO)], ids=["same", "tp2 sp"])
def test_it_goes_on_as_if_never_stopped(start, runs, tmp_path, ranks, layout):
    shutil.copytree(runs[1], tmp_path / "run")
    start(ranks, tmp_path / "run", *layout)
    whole, resumed = (metrics(run) for run in (runs[0], tmp_path / "run"))
    losses = [[record["loss"] for record in records[STOP:]] for records in (whole, resumed)]
    if ranks == 1:
        assert losses[0] == losses[1]
    else:
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_is_not_continued_as_a_causal_one(start, runs):
    keys = ("model.causal=true", "train.objective=clm")
    said = start(1, runs[1], *keys, status=2).output()
    assert "model.causal: False saved, True asked" in said
    said = start(1, runs[1], "train.objective=clm", status=2).output()
    assert "train.objective = clm predicts the next byte, but model.causal = false sees it" in said
    assert [path.name for path in find_checkpoints(runs[1] / "checkpoints")] == ["step_00000012"]


def test_bits_of_the_next_base_are_refused(runs, capsys):
    assert evaluate([str(runs[0])]) == 2
    said = capsys.readouterr().err
    assert "needs a causal model, and this one was trained with model.causal=false" in said
