"""The real program, stopped in every way it can be stopped, ends where an undisturbed run ends."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from megatron_hyena.checkpoint.dense import load_dense
from megatron_hyena.checkpoint.format import PROVENANCE, find_checkpoints
from tests.smoke.program import Program, metrics

pytestmark = [pytest.mark.smoke, pytest.mark.parallel]

STEPS, HALF = 20, 10
TWO = ["parallel.tensor=2", "parallel.sequence=true", "parallel.recompute=block"]


@pytest.fixture(scope="module")
def start(corpus, tmp_path_factory):
    """start(ranks, run folder, *overrides, limit=None) -> Program."""
    logs = tmp_path_factory.mktemp("logs")
    config = logs / "run.yaml"
    config.write_text(f"""
model: {{pattern: SMLAH, hidden_size: 32, num_heads: 2, num_filter_groups: 2, vocab_size: 128,
         mr_filter_length: 32, hyena_filter_order: 8, max_sequence_length: 512}}
parallel: {{zero_stage: 1}}
data: {{train: {corpus}/train, valid: {corpus}/valid, sequence_length: 256}}
train: {{steps: {STEPS}, global_batch_size: 8, micro_batch_size: 4, valid_every: 10,
         valid_sequences: 8}}
optim: {{lr: 3.0e-3, warmup_steps: 5}}
checkpoint: {{every: 5, keep: 2}}
log: {{every: 1}}
""")
    started: list[Program] = []

    def start(ranks, run, *overrides, limit=None):
        layout = TWO if ranks == 2 else []
        log = logs / f"program_{len(started)}"
        arguments = [str(config), f"run.output_dir={run}", *layout, *overrides]
        started.append(Program(ranks, arguments, log, limit))
        return started[-1]

    yield start
    for program in started:
        program.kill()


@pytest.fixture(scope="module")
def runs(start, tmp_path_factory) -> dict[str, Path]:
    """Runs of one and of two ranks, to the end (`full`) and to the half."""
    folder = tmp_path_factory.mktemp("runs")
    for ranks in (1, 2):
        full = start(ranks, folder / f"full{ranks}")
        half = start(ranks, folder / f"half{ranks}", f"train.stop_after={HALF}")
        for program in (full, half):
            assert program.finish() == [0] * ranks, program.output()
    return {path.name: path for path in folder.iterdir()}


def assert_same_end(run: Path, reference: Path) -> None:
    """Every figure and every bit of weights and moments."""
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert metrics(run, name) == metrics(reference, name)
    assert [r["step"] for r in metrics(run)] == list(range(1, STEPS + 1))
    (_, last), (_, wanted) = (find_checkpoints(path / "checkpoints") for path in (run, reference))
    assert last.name == wanted.name == f"step_{STEPS:08d}"
    files = sorted(path.name for path in wanted.glob("tensor_*"))
    assert files
    for name in files:
        assert (last / name).read_bytes() == (wanted / name).read_bytes(), name


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_halves_are_the_whole(runs, start, tmp_path, ranks):
    run = tmp_path / "run"
    shutil.copytree(runs[f"half{ranks}"], run)
    assert [r["step"] for r in metrics(run)] == list(range(1, HALF + 1))
    assert not (run / "summary.json").exists()
    program = start(ranks, run)
    assert program.finish() == [0] * ranks, program.output()
    assert "resuming from" in program.output()
    assert (run / "summary.json").exists()
    assert_same_end(run, runs[f"full{ranks}"])
    (told,) = json.loads((find_checkpoints(run / "checkpoints")[-1] / PROVENANCE).read_text())
    assert told["provenance"]["sources"][0]["file"] == "ct.fasta.gz"


def test_sigterm_and_kill_lose_nothing(runs, start, tmp_path):
    run = tmp_path / "run"
    program = start(2, run)
    program.wait_for_step(run, 2)
    program.processes[1].send_signal(signal.SIGTERM)
    assert program.finish() == [85, 85], program.output()
    assert "saved; the same command goes on" in program.output()
    (saved,) = find_checkpoints(run / "checkpoints")[-1:]
    assert saved.name == f"step_{len(metrics(run)):08d}"

    program = start(2, run)
    program.wait_for_step(run, 11)
    program.kill()
    assert len(metrics(run)) < STEPS
    # What a crash in the middle of saving leaves.
    leftover = run / "checkpoints" / ".step_00000099"
    leftover.mkdir()
    (leftover / "tensor_00_of_02.safetensors").write_bytes(b"begun")

    program = start(2, run)
    assert program.finish() == [0, 0], program.output()
    assert f"resuming from {run}/checkpoints/step_000000" in program.output()
    assert not leftover.exists()
    assert_same_end(run, runs["full2"])


def assert_one_sentence(program: Program, *parts: str) -> None:
    text = program.output()
    assert "Traceback" not in text, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    for part in parts:
        assert part in errors[0]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["model.pattern=SMLAW", "model.num_heads=4"],
            [
                "model.num_heads: 2 saved, 4 asked; model.pattern: 'SMLAH' saved, 'SMLAW' asked",
                "set checkpoint.resume=none and another run.output_dir",
            ],
        ),
        (
            ["train.global_batch_size=16"],
            ["train.global_batch_size=8, now 16", "set train.global_batch_size=8"],
        ),
        (["data.sequence_length=128"], ["set data.sequence_length=256"]),
        (["run.seed=5"], ["saved with run.seed=0, now 5"]),
        (["data.train={valid}"], ["folder 1 of data.train was ", "give the same shards"]),
    ],
)
def test_a_changed_run_does_not_resume(runs, start, corpus, overrides, parts):
    program = start(2, runs["half2"], *(o.format(valid=corpus / "valid") for o in overrides))
    assert program.finish() == [2, 2]
    assert_one_sentence(program, "step_00000010", *parts)


def test_a_shortened_file_is_named(runs, start, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["half2"], run)
    file = run / "checkpoints/step_00000010/tensor_01_of_02.safetensors"
    size = file.stat().st_size
    os.truncate(file, size // 2)
    program = start(2, run)
    assert program.finish() == [2, 2]
    assert_one_sentence(program, f"{file}: {size // 2} bytes, {size} bytes expected")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["model.num_heads=1"], "model.num_heads = 1 is not a multiple of parallel.tensor = 2"),
        (["train.global_batch_size=6"], "train.global_batch_size = 6 is not a multiple"),
    ],
)
def test_a_layout_that_does_not_divide_is_refused(start, tmp_path, overrides, part):
    program = start(2, tmp_path / "run", *overrides)
    assert program.finish(timeout=60) == [2, 2]
    assert_one_sentence(program, part)
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_ends_with_one_sentence(start, tmp_path):
    wild = ("optim.lr=1e18", "optim.min_lr=0", "optim.grad_clip=0", "optim.warmup_steps=0")
    program = start(1, tmp_path / "run", *wild)
    assert program.finish() == [2]
    assert_one_sentence(program, "the loss of step", "lower optim.lr")


def full_disk(run: Path, room: int) -> None:
    """Leave `room` bytes on the disk of `run`, which is a disk of its own."""
    disk = os.statvfs(run)
    with (run / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - room)


@pytest.mark.parametrize("cause", ["file too large", "no space left"])
def test_a_full_disk_leaves_the_previous_checkpoint(runs, start, tmp_path, cause):
    run, limit = tmp_path / "run", None
    run.mkdir()
    size = (runs["half2"] / "checkpoints/step_00000010/tensor_00_of_02.safetensors").stat().st_size
    if cause == "no space left":
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", run])
        if mount.returncode:
            pytest.skip("mounting a small disk needs root; the other case needs nothing")
    try:
        shutil.copytree(runs["half2"], run, dirs_exist_ok=True)
        if cause == "no space left":
            full_disk(run, room=size + size // 2)  # one rank's file and half of the other's
            text = os.strerror(errno.ENOSPC)
        else:
            text = os.strerror(errno.EFBIG)

            def limit():
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

        program = start(2, run, limit=limit)
        assert program.finish() == [2, 2], program.output()
        assert_one_sentence(program, f"{run}/checkpoints: could not save step 15", text)
        assert_one_sentence(program, "free some space and start the same command again")
        assert {p.name for p in (run / "checkpoints").iterdir()} == {
            "step_00000005",
            "step_00000010",
        }
        _, found = load_dense(run)
        assert found.name == "step_00000010"
    finally:
        if cause == "no space left":
            subprocess.run(["umount", run], check=True)
