"""A rank that fails ends the job within a minute, and its error stands above all others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.checkpoint.format import find_checkpoints
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from tests.smoke.program import ROOT, metrics

pytestmark = [pytest.mark.smoke, pytest.mark.parallel]

MINUTE, START = 60, 90
"""Seconds to end after a failure, and to reach it."""


class Job:
    """Two ranks of `tests.smoke.faulty_train` under one launcher, or each by itself.

    Without a launcher nobody ends the others when one fails, and rank 0 hosts the store, as under
    Slurm.
    """

    def __init__(self, folder: Path, config: Path, fault: str, rank: int, *, torchrun: bool):
        self.run, self.log = folder / "run", folder / "log"
        words = ["-m", "tests.smoke.faulty_train", fault, str(rank), str(config)]
        words += [f"run.output_dir={self.run}"]
        commands: list[tuple[list[str], dict[str, str]]]
        if torchrun:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            commands = [([sys.executable, *launcher, *words], {})]
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            commands = [([sys.executable, *words], _environment(r, port)) for r in (0, 1)]
        with self.log.open("w") as output:
            self.processes = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | variables,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                for command, variables in commands
            ]

    def wait_for(self, sign: str, seconds: float) -> None:
        """Until the log holds `sign`."""
        deadline = time.monotonic() + seconds
        while sign not in self.output():
            assert time.monotonic() < deadline, f"no {sign!r} in time:\n{self.output()}"
            time.sleep(0.05)

    def finish(self, seconds: float) -> list[int]:
        """Exit status of each process; one that is not done in time fails the test."""
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {seconds} s:\n{self.output()}") from None

    def output(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _environment(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", dtype=np.uint8), 20_000)
    (folder / "random.fa").write_bytes(b">random\n" + bases.tobytes() + b"\n")
    store = write_store(folder / "genome.zarr", [folder / "random.fa"])
    rule = SplitRule(valid_fraction=0.0, test_fraction=0.0, gap=0)
    write_shards(store, folder / "shards", ShardSettings(rule=rule))
    path = folder / "run.yaml"
    path.write_text(f"""
model: {{pattern: SL, hidden_size: 16, num_heads: 2, num_filter_groups: 2, vocab_size: 128}}
parallel: {{tensor: 2, sequence: true, zero_stage: 1}}
data: {{train: {folder}/shards/train, sequence_length: 64}}
train: {{steps: 100000, global_batch_size: 2, micro_batch_size: 2}}
checkpoint: {{every: 2}}
log: {{every: 1}}
""")
    return path


@pytest.fixture
def start(config, tmp_path) -> Iterator:
    """start(fault, rank, torchrun=True) -> Job."""
    jobs: list[Job] = []

    def start(fault: str, rank: int, torchrun: bool = True) -> Job:
        jobs.append(Job(tmp_path, config, fault, rank, torchrun=torchrun))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


def assert_on_top(text: str, sentence: str, *, tracebacks: int) -> None:
    """One error, before everything that is not progress; `tracebacks` of all programs together."""
    lines = [
        line for line in text.splitlines() if not line.startswith(("step ", "new run", "data: "))
    ]
    assert lines[0] == f"error: {sentence}", text
    assert sum(line.startswith("error: ") for line in lines) == 1, text
    assert text.count("Traceback (most recent call last)") == tracebacks, text
    assert "Connection closed by peer" not in text, text


def test_a_defect_in_one_rank(start):
    """Its traceback is there, once; the other is torchrun's own."""
    job = start("backward", 1)
    job.wait_for("planted defect", START)
    assert job.finish(MINUTE) != [0]
    text = job.output()
    assert_on_top(text, "ZeroDivisionError: planted defect (rank 1)", tracebacks=2)
    assert "\nrank 0: ends because rank 1 failed; its error is above\n" in text
    root_cause = text[text.index("Root Cause") :]
    assert "rank      : 1 " in root_cause and "ZeroDivisionError: planted defect" in root_cause


def test_a_mistake_that_one_data_thread_finds(start):
    job = start("data", 1)
    job.wait_for("planted damage", START)
    assert job.finish(MINUTE) != [0]
    sentence = "planted damage; make the shards again (rank 1)"
    assert_on_top(job.output(), sentence, tracebacks=1)


def test_a_rank_killed_while_it_saves(start):
    """The other says what it knows and torchrun the rest; no checkpoint is half there."""
    job = start("saving", 1)
    job.wait_for("lost contact", START)
    assert job.finish(MINUTE) != [0]
    text = job.output()
    assert text.count("error: lost contact with another rank; unless its error is above") == 1
    assert text.count("Traceback (most recent call last)") == 1, text
    root_cause = text[text.index("Root Cause") :]
    assert "rank      : 1 " in root_cause and "(SIGKILL)" in root_cause
    assert [path.name for path in find_checkpoints(job.run / "checkpoints")] == ["step_00000002"]


def test_without_a_launcher_the_host_of_the_store_fails(start):
    job = start("backward", 0, torchrun=False)
    job.wait_for("planted defect", START)
    assert job.finish(MINUTE) == [1, 1]
    text = job.output()
    assert_on_top(text, "ZeroDivisionError: planted defect (rank 0)", tracebacks=1)
    assert text.endswith("\nrank 1: ends because rank 0 failed; its error is above\n")


def test_without_a_launcher_a_rank_fails_before_they_meet(start):
    """The other has nobody to lose contact with yet."""
    job = start("start", 1, torchrun=False)
    job.wait_for("planted mistake", START)
    assert job.finish(MINUTE) == [1, 2]
    text = job.output()
    assert_on_top(text, "planted mistake; mend it (rank 1)", tracebacks=0)
    assert text.endswith("\nrank 0: ends because rank 1 failed; its error is above\n")
    assert not job.run.exists()


def test_a_rank_that_hangs(start, monkeypatch):
    """Here after 20 seconds; see MEGATRON_HYENA_TIMEOUT. It ends, too, when it wakes up."""
    monkeypatch.setenv("MEGATRON_HYENA_TIMEOUT", "20")
    job = start("backward", 2, torchrun=False)  # no rank 2: nothing is planted
    deadline = time.monotonic() + START
    while len(metrics(job.run)) < 3:
        assert time.monotonic() < deadline, job.output()
        time.sleep(0.05)
    job.processes[1].send_signal(signal.SIGSTOP)
    job.wait_for("error: another rank hangs or is missing", MINUTE)
    job.processes[1].send_signal(signal.SIGCONT)
    assert job.finish(MINUTE) == [1, 1]
    assert job.output().count("error: ") == 1, job.output()
