"""Shards that could not be had as they were written: an end to the run, or left out and counted."""

from __future__ import annotations

import sys
import threading
from typing import Any

from megatron_hyena.errors import UserError

POLICIES = ("stop", "skip")
"""What `data.on_corrupt` may be."""


class CorruptShards:
    """What was met of a corpus' corrupt shards by this process; safe between threads.

    `stop` raises the first; `skip` goes on. Which windows there are, and their order, does not
    depend on what is corrupt: bases of a shard that is left out are read as PAD, which no loss
    counts, and their tracks as unknown.
    """

    def __init__(self, policy: str = "stop") -> None:
        """Raises UserError for an unknown policy."""
        if policy not in POLICIES:
            raise UserError(f"data.on_corrupt={policy!r} is unknown; use {' or '.join(POLICIES)}")
        self.policy = policy
        self.shards: dict[str, str] = {}
        """Name of each shard that is left out → the sentence that says why."""
        self.opened: set[str] = set()
        """Names of all shards there are, those left out among them."""
        self.reads = 0
        """Reads that met one of them: windows, or with `data.pack` their parts of one run."""
        self.bases = 0
        """Bases shown as PAD for it."""
        self._lock = threading.Lock()

    def meet(self, name: str, error: UserError) -> None:
        """Take note of the shard `name`, once on stderr too.

        Raises `error` under `stop`, and UserError where no shard is left.
        """
        if self.policy == "stop":
            raise error
        with self._lock:
            known = name in self.shards
            self.shards[name] = str(error)
        if not known:
            sys.stderr.write(f"left out, as data.on_corrupt=skip asks: {error}\n")
        if self.opened <= self.shards.keys():
            raise UserError(
                f"none of {len(self.shards)} shards is left with data.on_corrupt=skip (the last: "
                f"{error}); name another folder of shards"
            ) from error

    def count(self, bases: int) -> None:
        """Take note of a read of which `bases` were shown as PAD; nothing for 0."""
        if bases:
            with self._lock:
                self.reads += 1
                self.bases += bases

    def summary(self) -> dict[str, Any]:
        """What `summary.json` tells of this process."""
        return {
            "corrupt_shards": sorted(self.shards),
            "skipped_windows": self.reads,
            "skipped_bases": self.bases,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
