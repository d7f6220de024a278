"""Tasks: done once, again where an input or an output differs, and never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from megatron_hyena.corpus.tasks import WORK, Task, remove_strangers, run_tasks, stamp_of
from megatron_hyena.errors import UserError


def write(name: str, text: str, scratch: Path, progress) -> dict[str, str]:
    (scratch / name).write_text(text)
    progress(1000)
    return {"said": text}


def write_folder(name: str, files: int, scratch: Path, progress) -> dict[str, str]:
    (scratch / name).mkdir()
    for i in range(files):
        (scratch / name / str(i)).write_text("x" * i)
    return {}


def fail(scratch: Path, progress) -> dict[str, str]:
    (scratch / "half").write_text("ha")
    raise UserError("the sample is bad; mend it")


def die(scratch: Path, progress) -> dict[str, str]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def task(name: str, text: str = "a", **inputs: object) -> Task:
    return Task(f"t/{name}", (f"out/{name}",), inputs, partial(write, f"out/{name}", text), 7)


def bad(work) -> Task:
    return Task("t/bad", ("out/bad",), {}, work)


def test_a_task_is_done_once(tmp_path):
    some = task("a", n=1)
    told: list[int] = []
    run_tasks(tmp_path, [[some]], progress=told.append)
    assert sum(told) == some.size
    stamp = stamp_of(tmp_path, some)
    assert stamp is not None
    assert (stamp.result, list(stamp.files)) == ({"said": "a"}, ["out/a"])
    run_tasks(tmp_path, [[task("a", "b", n=1)]])
    assert (tmp_path / "out/a").read_text() == "a"
    run_tasks(tmp_path, [[task("a", "b", n=2)]])
    assert (tmp_path / "out/a").read_text() == "b"
    assert list((tmp_path / WORK / "partial").iterdir()) == []


@pytest.mark.parametrize("harm", ["output gone", "output cut", "stamp gone", "stamp flipped"])
def test_what_is_not_whole_is_done_again(tmp_path, harm):
    some = task("a", "abc")
    run_tasks(tmp_path, [[some]])
    output, stamp = tmp_path / "out/a", tmp_path / WORK / "stamps/t/a.json"
    if harm.startswith("output"):
        output.unlink() if harm.endswith("gone") else output.write_text("ab")
    else:
        content = bytearray(stamp.read_bytes())
        content[20] ^= 1
        stamp.unlink() if harm.endswith("gone") else stamp.write_bytes(content)
    assert stamp_of(tmp_path, some) is None
    run_tasks(tmp_path, [[some]])
    assert output.read_text() == "abc"
    assert stamp_of(tmp_path, some) is not None


def test_folders_are_replaced_whole(tmp_path):
    for files in (3, 2):
        some = Task("t/f", ("out/f",), {"n": files}, partial(write_folder, "out/f", files))
        run_tasks(tmp_path, [[some]])
        assert (
            sorted(path.name for path in (tmp_path / "out/f").iterdir()) == ["0", "1", "2"][:files]
        )
    with pytest.raises(ValueError, match="was to make"):
        run_tasks(tmp_path, [[Task("t/e", ("out/e",), {}, partial(write_folder, "out/e", 0))]])


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_ends_the_run_and_keeps_what_is_done(tmp_path, jobs):
    chains = [[task("a")], [bad(fail), task("behind")]]
    with pytest.raises(UserError, match=r"^the sample is bad; mend it$"):
        run_tasks(tmp_path, chains, jobs)
    assert (tmp_path / "out/a").read_text() == "a"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a"]


def test_a_killed_worker_is_told(tmp_path):
    with pytest.raises(UserError, match=r"a worker process was killed.*fewer --jobs"):
        run_tasks(tmp_path, [[bad(die)], [task("a")], [task("b")]], jobs=2)


SLEEPER = """
import os, sys, time
from functools import partial
from pathlib import Path
from megatron_hyena.corpus.tasks import Task, run_tasks

def sleep(name, scratch, progress):
    (Path(sys.path[0]) / f"pid{name}").write_text(str(os.getpid()))
    time.sleep(300)
    return {}

if __name__ == "__main__":
    tasks = [[Task(n, (n,), {}, partial(sleep, n))] for n in "abc"]
    run_tasks(Path(sys.path[0]) / "root", tasks, jobs=2)
"""


def test_workers_end_when_the_run_is_killed(tmp_path):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "sleeper.py")],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    wait_until(lambda: len([p for p in tmp_path.glob("pid*") if p.read_text()]) == 2)
    workers = [int(path.read_text()) for path in tmp_path.glob("pid*")]
    servers = {parent_of(worker) for worker in workers}
    assert run.pid not in servers
    run.kill()
    run.wait(timeout=60)
    wait_until(lambda: not any(is_alive(pid) for pid in (*workers, *servers)))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_strangers_are_removed_and_nothing_else(tmp_path):
    run_tasks(tmp_path, [[task("a")], [task("b")]])
    (tmp_path / "out/own.txt").write_text("mine")
    (tmp_path / WORK / "partial/left").mkdir()
    remove_strangers(tmp_path, [task("b")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b", "own.txt"]
    assert not (tmp_path / WORK / "partial").exists()
    assert stamp_of(tmp_path, task("a")) is None
    assert stamp_of(tmp_path, task("b")) is not None
