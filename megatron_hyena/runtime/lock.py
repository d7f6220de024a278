"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from megatron_hyena.errors import UserError

LOCK = ".lock"
"""File that a process holds while it is at work in a folder."""


@contextmanager
def only_process_in(folder: Path, patience: float = 30.0) -> Iterator[None]:
    """Hold `folder/.lock` while the body runs; the system frees it if the process dies.

    Args:
        patience: seconds to wait for a process that may be on its way out.
    Raises:
        UserError: another process holds it for longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _acquired(file, patience):
            file.seek(0)
            raise UserError(
                f"{folder}: process {file.read().strip() or 'unknown'} is at work in this folder; "
                "wait for it, stop it, or choose another output folder"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _acquired(file: TextIO, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it: process or thread of this machine.

    The system frees it if the process dies. The file stays: removing it would part those who wait
    from those who come.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # By name, not by closing: a child forked meanwhile has the file open too.
            fcntl.flock(file, fcntl.LOCK_UN)
