"""The real program under a length curriculum: stopped between two lengths, it ends as if not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_hyena.checkpoint.format import find_checkpoints, read_manifest
from tests.smoke.program import Program, metrics

pytestmark = [pytest.mark.smoke, pytest.mark.parallel]

STEPS, STOP = 9, 5
LENGTHS = [64, 64, 64, 128, 128, 128, 256, 256, 256]
TWO = ("parallel.context=2", "parallel.zero_stage=2")


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory):
    """start(ranks, run folder, *overrides) -> finished Program."""
    folder = tmp_path_factory.mktemp("curriculum")
    config = folder / "run.yaml"
    config.write_text(f"""
model: {{pattern: SMLAH, hidden_size: 32, num_heads: 2, num_filter_groups: 2, vocab_size: 128,
         mr_filter_length: 32, hyena_filter_order: 8, max_sequence_length: 256}}
data: {{train: {corpus}/train, valid: {corpus}/valid, sequence_length: 256,
        pack: true}}
curriculum: {{initial_length: 64, growth: doubling, steps: 6}}
train: {{steps: {STEPS}, global_batch_size: 4, micro_batch_size: 2, valid_sequences: 4}}
optim: {{lr: 3.0e-3, warmup_steps: 3}}
checkpoint: {{keep: 2}}
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
    """One run to the end, and one that was stopped while the length was growing."""
    folder = tmp_path_factory.mktemp("runs")
    start(1, folder / "whole")
    start(1, folder / "begun", f"train.stop_after={STOP}")
    return folder / "whole", folder / "begun"


def test_the_length_grows_and_the_tokens_stay(runs):
    records = metrics(runs[0])
    assert [record["sequence_length"] for record in records] == LENGTHS
    assert [record["tokens"] for record in records] == [1024 * n for n in range(1, STEPS + 1)]
    (validation,) = metrics(runs[0], "validation.jsonl")
    assert validation["step"] == STEPS


def test_stopped_between_lengths_it_ends_bit_equal(runs, start, tmp_path):
    whole, run = runs[0], tmp_path / "run"
    shutil.copytree(runs[1], run)
    assert [record["sequence_length"] for record in metrics(run)] == LENGTHS[:STOP]
    assert "resuming from" in start(1, run).output()
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert metrics(run, name) == metrics(whole, name)
    (ours,), (theirs,) = (find_checkpoints(path / "checkpoints")[-1:] for path in (run, whole))
    (file,) = theirs.glob("tensor_*")
    assert (ours / file.name).read_bytes() == file.read_bytes()
    assert read_manifest(ours).lengths == [[0, 64], [3, 128], [6, 256]]


def test_two_ranks_go_on_with_the_same_lengths_and_losses(runs, start, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[1], run)
    start(2, run, *TWO)
    ours, theirs = metrics(run), metrics(runs[0])
    assert [record["sequence_length"] for record in ours] == LENGTHS
    for record, reference in zip(ours, theirs, strict=True):
        assert record["loss"] == pytest.approx(reference["loss"], rel=2e-5)
        assert record["grad_norm"] == pytest.approx(reference["grad_norm"], rel=2e-4)


def test_another_curriculum_does_not_go_on(runs, start):
    program = start(1, runs[1], "curriculum.growth=linear", status=2)
    (error,) = [line for line in program.output().splitlines() if line.startswith("error: ")]
    assert (
        "saved in a run of sequence lengths 64 from step 1, 128 from step 4, 256 from step 7, now "
        "64 from step 1, 128 from step 3, 256 from step 7; set curriculum.initial_length=64, "
        "curriculum.growth=doubling and curriculum.steps=6"
    ) in error
