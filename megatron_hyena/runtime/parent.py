"""End with the process that started this one."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent dies, `kill -9` included.

    Without it a killed launcher leaves its ranks training. Elsewhere nothing is done: there the
    ranks end when their peers do.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the request
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_creator() -> None:
    """End this worker of `multiprocessing` when the process that created it dies, however.

    A worker of a forkserver is the server's child, and the server lives as long as a worker does:
    `end_with_parent` would wait for ever. Does nothing in a process that has no creator.
    """
    creator = parent_process()
    if creator is None:
        return

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, args=(creator.sentinel,), daemon=True).start()
