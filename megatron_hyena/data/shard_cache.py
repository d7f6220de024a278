"""Shards of a store: fetched when they are first touched, kept in a folder, mapped from there.

The folder is shared by all processes of a machine. Where it has a bound, the copies used longest
ago go first. A copy that is mapped stays readable after it is removed (so does Linux), and its
disk space comes back when its last process lets go of it: each does when it next opens a shard.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet

import numpy as np

from megatron_hyena.data.alphabet import Bases
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.data.fetch import LOCKS, DamagedError, fetch_shard, place_of
from megatron_hyena.data.remote import Retry, is_remote, read_object
from megatron_hyena.data.remote_errors import MissingError, ShortError, UnreachableError
from megatron_hyena.data.shard_index import INDEX_FILE, Shard
from megatron_hyena.errors import UserError
from megatron_hyena.runtime.lock import exclusive

AT_ONCE = 4
"""Shards that a process fetches ahead at the same time."""


def default_cache_folder() -> Path:
    """`megatron-hyena/shards` in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "megatron-hyena" / "shards"


class ShardFile:
    """One shard of a store, or a packed one; `content` fetches and maps it at first use."""

    def __init__(
        self, url: str, shard: Shard, cache: ShardCache, corrupt: CorruptShards, *, verify: bool
    ) -> None:
        """`verify`: of a copy that is there already, compare the SHA-256 before it is mapped."""
        self.url, self.shard, self.remote = url, shard, is_remote(url)
        self.size = shard.unpacked_bytes or shard.bytes
        self.sha256 = shard.unpacked_sha256 or shard.sha256
        cache.check(url, self.size)
        self.cache, self.corrupt, self.verify = cache, corrupt, verify
        self.used = 0.0
        """Time of the last use in this process, in seconds of the epoch."""
        self.mapped: Bases | None = None
        self.error: UserError | None = None
        """Why it could not be had: it is not asked for again."""
        self.absent = False
        """Whether it could not be had and is left out."""

    @property
    def content(self) -> Bases | None:
        """Its bytes, uint8 [size], memory-mapped; None where it is left out.

        Raises UserError as `fetch` does where it is not to be left out.
        """
        self.used = time.time()
        mapped = self.mapped
        if mapped is not None:
            return mapped
        if self.absent:
            return None
        try:
            return self.cache.open(self)
        except (DamagedError, MissingError, ShortError) as error:
            self.corrupt.meet(self.url, error)
        except UnreachableError as error:
            if self.corrupt.policy == "stop" or not self._store_answers():
                raise
            self.corrupt.meet(self.url, error)
        self.absent = True
        return None

    def _store_answers(self) -> bool:
        """Whether the folder's index can be had: if not, no single shard is to blame."""
        try:
            read_object(f"{self.url.rpartition('/')[0]}/{INDEX_FILE}", self.cache.retry)
        except UserError:
            return False
        return True

    def want(self) -> None:
        """Have it fetched soon; returns at once."""
        if self.mapped is None and self.error is None:
            self.cache.want([self])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "mapped": None}


class ShardCache:
    """A folder of copies. A cache that was forked or pickled goes on with threads of its own."""

    def __init__(
        self,
        folder: Path | str | None = None,
        gigabytes: float = 0.0,
        *,
        retry: Retry | None = None,
    ) -> None:
        """`folder` None or empty: the user's. `gigabytes`: 10⁹ bytes to keep at most, not counting
        what is being fetched; 0 for no bound. `retry` as for `fetch`.
        """
        self.folder = Path(folder).expanduser() if folder else default_cache_folder()
        self.limit = int(gigabytes * 1e9)
        self.retry = retry
        self._renew()
        _ALL.add(self)

    def check(self, url: str, size: int) -> None:
        """Raise UserError where the bound is below a single shard."""
        if 0 < self.limit < size:
            raise UserError(
                f"data.cache_gigabytes allows {self.limit} bytes, but {url} has {size}; allow "
                "more, or 0 for no bound"
            )

    def open(self, file: ShardFile) -> Bases:
        """Fetch and map `file`; raises what `fetch` raises, and the same again when asked again."""
        with self._guard:
            lock = self._locks.setdefault(file.url, threading.Lock())
        with lock:
            if file.error is not None:
                raise file.error
            if file.mapped is None:
                try:
                    mapped = self._map(file)
                except UserError as error:
                    file.error = error
                    raise
                with self._guard:
                    self._open[file.url] = file
                file.mapped = mapped
                return mapped
            return file.mapped

    def want(self, files: Iterable[ShardFile]) -> None:
        """Have `files` fetched soon, in this order, by a few threads; returns at once.

        What fails is raised where its content is asked for.
        """
        with self._guard:
            for file in files:
                if file.mapped is None and file.error is None and file.url not in self._wanted:
                    self._wanted.add(file.url)
                    self._queue.put(file)
            while len(self._threads) < min(AT_ONCE, len(self._wanted)):
                thread = threading.Thread(target=self._serve, name="shards", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self) -> None:
        """Fetch what is wanted until nothing is."""
        file: ShardFile | None = None
        while True:
            with self._guard:
                if file is not None:
                    self._wanted.discard(file.url)
                try:
                    file = self._queue.get_nowait()
                except Empty:
                    self._threads.remove(threading.current_thread())
                    return
            file.used = time.time()
            with suppress(Exception):  # whoever asks for the content meets it: see `open`
                self.open(file)

    def _map(self, file: ShardFile) -> Bases:
        """Memory-map the copy, which another process may remove at any moment before that."""
        place = place_of(self.folder, file.sha256)
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            found = place.is_file()
            if not found:
                self._make_room(file.size, file)
            fetch_shard(file.url, file.shard, self.folder, remote=file.remote, retry=self.retry)
            try:
                if found and file.verify and sha256_of(place) != file.sha256:
                    sys.stderr.write(f"{place}: this copy is damaged; {file.url} is fetched anew\n")
                    place.unlink(missing_ok=True)
                    continue
                os.utime(place)
                mapped = np.memmap(place, dtype=np.uint8, mode="r").view(np.ndarray)
            except FileNotFoundError:
                continue
            self._make_room(0, file)
            return mapped

    def _make_room(self, size: int, wanted: ShardFile) -> None:
        """Remove the copies used longest ago until `size` more bytes are within the bound."""
        if not self.limit:
            return
        with self._guard:
            opened = list(self._open.values())
        for file in opened:
            _quietly(partial(os.utime, self._place(file), (file.used, file.used)))
        with exclusive(self.folder / LOCKS / "room"):
            copies = sorted(_copies(self.folder))
            total = size + sum(bytes for _, bytes, _ in copies)
            for _, bytes, path in copies:
                if total > self.limit and path != self._place(wanted):
                    _quietly(path.unlink)
                    total -= bytes
        gone = [file for file in opened if not self._place(file).exists()]
        with self._guard:
            for file in gone:
                file.mapped = None
                self._open.pop(file.url, None)

    def _place(self, file: ShardFile) -> Path:
        return place_of(self.folder, file.sha256)

    def _renew(self) -> None:
        """Locks that nobody holds and threads that have not begun: for a new or a forked cache."""
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._queue: SimpleQueue[ShardFile] = SimpleQueue()
        self._wanted: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._open: dict[str, ShardFile] = dict(getattr(self, "_open", {}))

    def __getstate__(self) -> dict[str, Any]:
        kept = ("folder", "limit", "retry")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew()
        _ALL.add(self)


def _copies(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of every copy."""
    found = []
    for path in folder.glob("*.tar"):
        state = _quietly(path.stat)
        if state:
            found.append((state.st_mtime, state.st_size, path))
    return found


def _quietly(action: Callable[[], Any]) -> Any:
    """What `action` on a copy returns; None where another process has removed the copy."""
    try:
        return action()
    except FileNotFoundError:
        return None


_ALL: WeakSet[ShardCache] = WeakSet()


def _renew_all() -> None:
    for cache in list(_ALL):
        cache._renew()


os.register_at_fork(after_in_child=_renew_all)
