"""The first rank to fail says why, on top of everything else; the others step aside.

A rank that fails takes the others along: they lose the connection to it, and each would print a
traceback that hides the first. So a failing rank puts its sentence on a board, a key of the store
at which the ranks meet. The one that finds the board empty prints its error in full; any other
waits a moment, so that the launcher sees the first end first, and prints one short line. A thread
looks at the board, too, for a rank that waits where it cannot notice (NCCL, a rank still missing).

Nothing here imports torch before the ranks meet or one fails.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    import torch.distributed as dist

KEY = "failure"
POLL = 2.0
"""Seconds between two looks at the board."""
PATIENCE = 5.0
"""Seconds given to a rank to end by itself, and to the board to answer."""
STEP_ASIDE = 1.0
"""Seconds by which a rank that was not the first to fail ends later."""

_PLACE = re.compile(r"^\[\S+:\d+\] ")
_LOST = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError|remote process exited"
)
_WAITED = re.compile(r"Timed out waiting|wait timeout after|Application timeout")


@dataclass(frozen=True)
class Failure:
    """Why a rank ends.

    Attributes:
        sentence: for the user.
        trace: the traceback of an error that no one expected, else "".
        status: exit status.
        consequence: what failed is probably another rank.
    """

    sentence: str
    trace: str = ""
    status: int = 1
    consequence: bool = False


def describe(error: BaseException) -> Failure:
    """Tell a user's mistake (status 2), a lost or silent rank, and a defect of the program."""
    if isinstance(error, UserError):
        return Failure(str(error), status=2)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        advice = "free some space and start the command again"
        return Failure(f"the disk is full ({error}); {advice}", status=2)
    trace = "".join(traceback.format_exception(error))
    text = _PLACE.sub("", str(error)).strip().split("\n")[0]
    if isinstance(error, RuntimeError) and _LOST.search(text):
        told = text.split(". ")[0]
        sentence = "lost contact with another rank; unless its error is above, it was killed or "
        return Failure(f"{sentence}its machine is gone ({told})", consequence=True)
    if isinstance(error, RuntimeError) and _WAITED.search(text):
        sentence = f"another rank hangs or is missing ({text}); MEGATRON_HYENA_TIMEOUT sets the "
        return Failure(f"{sentence}seconds to wait", trace, consequence=True)
    return Failure(f"{type(error).__name__}: {text}", trace)


class Notice(NamedTuple):
    """What is written on the board."""

    rank: int
    sentence: str
    consequence: bool


class FailureBoard:
    """This rank's view of the board. A run of one rank has none and just prints."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.alone = "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1"
        self._store: dist.Store | None = None
        self._first: Notice | None = None
        self._leaving = threading.Event()

    def watch(self, store: dist.Store) -> None:
        """Look at the board in `store` from now on; end this process soon after it is written on.

        The process is given `PATIENCE` seconds to notice by itself. A store that is gone tells
        nothing: the launcher, or the connections to other ranks, end this rank.
        """
        if not self.alone:
            self._store = store.clone()  # type: ignore[attr-defined]
            threading.Thread(target=self._watch, name="failures", daemon=True).start()

    def close(self) -> None:
        """The run is done: what befalls other ranks from now on does not matter."""
        self._leaving.set()

    def report(self, error: Exception) -> int:
        """Say on stderr why this rank ends, or that another one failed first.

        Returns the exit status: 2 for a user's mistake, else 1. Where the ranks have met it does
        not return but ends the process: an orderly teardown may wait for ranks that are gone.
        """
        self._leaving.set()
        failure = describe(error)
        self._tell(failure)
        if self._store is not None:
            self._end(failure.status)
        return failure.status

    def _watch(self) -> None:
        assert self._store is not None
        while not self._leaving.wait(POLL):
            try:
                if self._store.check([KEY]):
                    self._first = Notice(*json.loads(self._store.get(KEY)))
                    break
            except RuntimeError:
                return
        if not self._leaving.wait(PATIENCE):
            self._tell(Failure("", consequence=True))
            self._end(1)

    def _tell(self, failure: Failure) -> None:
        first = self._first or self._write_on_board(failure)
        if first.rank == self.rank:
            place = "" if self.alone else f" (rank {self.rank})"
            _print(f"error: {failure.sentence}{place}\n{failure.trace}".rstrip())
        if first.rank == self.rank and not failure.consequence:
            _name_root_cause(failure.sentence)
            return
        time.sleep(STEP_ASIDE)
        if first.rank == self.rank or failure.sentence == first.sentence:
            return
        if not failure.consequence:
            _print(f"rank {self.rank}: failed after rank {first.rank}: {failure.sentence}")
        elif not first.consequence:
            _print(f"rank {self.rank}: ends because rank {first.rank} failed; its error is above")

    def _write_on_board(self, failure: Failure) -> Notice:
        """The first failure: this one if there is no board to know better."""
        notices = [Notice(self.rank, failure.sentence, failure.consequence)]

        def ask() -> None:
            try:
                if (store := self._reach()) is not None:
                    first = store.compare_set(KEY, "", json.dumps(notices[0]))
                    notices.append(Notice(*json.loads(first)))
            except RuntimeError:
                return  # the host has gone just now

        if not self.alone:  # in a thread: a host that hangs would keep this rank waiting
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(2 * PATIENCE)
        return notices[-1]

    def _reach(self) -> dist.Store | None:
        """The store, if its host answers. A rank that has not met the others waits for it a
        little; rank 0, which may be the host to be, does not.
        """
        patience = 0.0 if self._store is not None or self.rank == 0 else PATIENCE
        if not _listening(patience):
            return None
        from megatron_hyena.runtime.process import join_store

        return self._store or join_store(timedelta(seconds=PATIENCE))

    def _end(self, status: int) -> None:
        from megatron_hyena.runtime.process import hosts_store

        if hosts_store():
            time.sleep(POLL + STEP_ASIDE)  # until the others have looked at the board
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _listening(patience: float) -> bool:
    """Whether someone listens where the ranks meet, asked again for `patience` seconds."""
    address = (os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0")))
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(address, timeout=PATIENCE).close()
            return True
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)


def _name_root_cause(sentence: str) -> None:
    """Leave the sentence where torchrun looks for the cause of a rank's end."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
        record = {"message": {"message": sentence, "extraInfo": details}}
        Path(path).write_text(json.dumps(record), encoding="utf-8")


def _print(text: str) -> None:
    """One write, so that the lines of other ranks do not come between; below a bar, if any."""
    sys.stderr.write("\n" * sys.stderr.isatty() + text + "\n")
    sys.stderr.flush()
