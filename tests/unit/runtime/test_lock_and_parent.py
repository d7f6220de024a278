"""A folder has one process at a time, and a killed launcher takes its ranks along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_hyena.errors import UserError
from megatron_hyena.runtime.lock import only_process_in

HOLD = """
import sys, time
from pathlib import Path
from megatron_hyena.runtime.lock import only_process_in
with only_process_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

PARENT = """
import subprocess, sys, time
from megatron_hyena.runtime.parent import end_with_parent
child = subprocess.Popen(["sleep", "60"], preexec_fn=end_with_parent)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=f"process {holder.pid} is at work in this folder"),
        only_process_in(tmp_path, patience=0.0),
    ):
        pass
    holder.kill()
    holder.wait()
    with only_process_in(tmp_path, patience=5.0):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a request to Linux")
def test_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 10
    while _alive(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
