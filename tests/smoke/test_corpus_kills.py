"""Preparation of a corpus killed at many points: the bytes do not change, nothing is done twice."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_hyena.corpus.tasks import WORK, read_stamp
from tests.oracles.small_corpus import OVERRIDES, identities, tree, write_inputs

REPOSITORY = Path(__file__).parents[2]
KILLED = str(Path(__file__).with_name("killed_corpus.py"))

pytestmark = pytest.mark.smoke


def command(program: list[str], sheet: Path, root: Path, *more: str) -> list[str]:
    config = str(REPOSITORY / "configs/corpus/example.yaml")
    inputs = ["inputs.paths=[]", "inputs.annotation=[]", "inputs.name=", "inputs.taxon="]
    inputs += [f"inputs.sheet={sheet}", *OVERRIDES]
    return [sys.executable, *program, config, *inputs, "--output", str(root), *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def finished(root: Path) -> dict[str, tuple[int, int]]:
    """Identity of every file that a stamp lists, whose task so is finished."""
    known = identities(root) if root.exists() else {}
    stamps = [read_stamp(path) for path in (root / WORK / "stamps").rglob("*.json")]
    return {name: known[name] for stamp in stamps if stamp for name in stamp.files}


@pytest.fixture(scope="module")
def sheet(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, sheet) -> tuple[dict[str, bytes], int]:
    """What comes of a run that is left alone, and how often it renames."""
    root = tmp_path_factory.mktemp("undisturbed") / "corpus"
    process = start(command([KILLED, "0"], sheet, root))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    match = re.search(r"renames (\d+)", out)
    assert match is not None
    return tree(root), int(match[1])


def test_killed_at_renames_it_goes_on_where_it_was(tmp_path, sheet, undisturbed):
    """Four times in one folder, before and behind a rename, further on each time.

    A kill comes later than the renames of one task, of which a store of two tracks has most.
    """
    expected, renames = undisturbed
    root = tmp_path / "corpus"
    done: dict[str, tuple[int, int]] = {}
    draw = random.Random(11)
    for kill in range(4):
        point = draw.randrange(renames // 5, renames // 4) * draw.choice((1, -1))
        process = start(command([KILLED, str(point)], sheet, root))
        _, err = process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, f"kill {kill} at {point}: {err}"
        assert not (root / "manifest.json").exists()
        now = finished(root)
        assert done.items() <= now.items(), "finished work was done again"
        assert len(now) > len(done), f"kill {kill} at {point} came before any task was finished"
        done = now
    process = start(command(["-m", "tools.prepare_corpus"], sheet, root))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert tree(root) == expected
    assert sum(name.startswith("stores/") for name in done) > 5  # more than one sample
    assert done.items() <= identities(root).items()


@pytest.mark.slow
def test_killed_at_twenty_five_moments_with_its_workers(tmp_path, sheet, undisturbed):
    expected, _ = undisturbed
    words = command(["-m", "tools.prepare_corpus"], sheet, tmp_path / "timed", "--jobs", "2")
    begin = time.monotonic()
    assert start(words).wait(timeout=300) == 0
    duration = time.monotonic() - begin
    assert tree(tmp_path / "timed") == expected
    draw = random.Random(12)
    killed = 0
    for number in range(75):
        if killed == 25:
            break
        root = tmp_path / f"corpus{number}"
        words = command(["-m", "tools.prepare_corpus"], sheet, root, "--jobs", "2")
        process = start(words)
        time.sleep(draw.uniform(0.1, 1.0) * duration)
        process.kill()
        killed += process.wait(timeout=60) == -signal.SIGKILL
        time.sleep(0.2)  # the system ends its workers
        done = finished(root)
        again = start(words)
        _, err = again.communicate(timeout=300)
        assert again.returncode == 0, err
        assert tree(root) == expected
        assert done.items() <= identities(root).items(), "finished work was done again"
    assert killed == 25
