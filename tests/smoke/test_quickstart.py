"""`tools.quickstart`, shortened: interrupted twice, finished, and not done again.

The whole quickstart with its 400 steps is `make quickstart`; this takes the same path with fewer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 120
OVERRIDES = [f"train.steps={STEPS}", "checkpoint.every=10", "optim.warmup_steps=10", "log.every=5"]


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tools.quickstart", *OVERRIDES],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_checkpoint(folder: Path, child: subprocess.Popen[str], step: int) -> None:
    """Until a checkpoint of `step` or later is there."""
    checkpoints = folder / "runs/quickstart/checkpoints"
    deadline = time.monotonic() + 180
    while not any(int(p.name[5:]) >= step for p in checkpoints.glob("step_*")):
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.2)


@pytest.mark.smoke
@pytest.mark.timeout(900)
def test_quickstart_survives_interruptions_and_beats_markov(tmp_path: Path) -> None:
    for name in ("configs", "examples", "tools", "pretrain"):
        (tmp_path / name).symlink_to(ROOT / name)
    child = start(tmp_path)
    wait_for_checkpoint(tmp_path, child, 10)
    child.kill()
    child.communicate()

    child = start(tmp_path)
    wait_for_checkpoint(tmp_path, child, 30)
    child.send_signal(signal.SIGTERM)
    text = child.communicate(timeout=120)[0]
    assert child.returncode != 0
    assert "resuming from" in text
    assert "the same command goes on" in text

    child = start(tmp_path)
    text = child.communicate(timeout=600)[0]
    assert child.returncode == 0, text
    assert "agrees with the trained model" in text
    run = tmp_path / "runs/quickstart"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(5, STEPS + 1, 5))
    report = json.loads((run / "evaluation.json").read_text())
    assert report["model"]["bits_per_base"] < report["best_markov"]["bits_per_base"]
    assert {p.name for p in (run / "plots").iterdir()} >= {"training.png", "evaluation.png"}
    assert list((run / "tensorboard").iterdir())

    finished = (run / "summary.json").stat().st_mtime_ns
    child = start(tmp_path)
    text = child.communicate(timeout=120)[0]
    assert child.returncode == 0, text
    assert text.count("already done") == 5
    assert (run / "summary.json").stat().st_mtime_ns == finished
