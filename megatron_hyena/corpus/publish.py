"""Shards written to an object store: each tar as soon as it is cut, the indices last.

A reader opens a folder of shards by its index.json, so an upload that was interrupted leaves
nothing that looks whole. The next one finds what is there already and uploads the rest.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_hyena.data.remote import Retry, find, holds, is_remote, remove, upload
from megatron_hyena.data.shard_index import INDEX_FILE, Shard
from megatron_hyena.errors import UserError

UNFINISHED = ".unfinished"
"""An object that lies at the location from before the first upload until after the last."""
AT_ONCE = 2
"""Shards that are uploaded at the same time, while the next is cut."""


@dataclass(frozen=True)
class Destination:
    """Where shards are cut, and who is told of each; see `write_shards`."""

    folder: Path
    finished: Callable[[Path, Shard], object] = lambda path, shard: None


@contextmanager
def destination(
    output: str, *, overwrite: bool, retry: Retry | None = None
) -> Iterator[Destination]:
    """Yield where to write: `output` itself, or for s3:// a temporary folder that is emptied.

    There, under $TMPDIR, a few shards lie at a time: each goes when it is uploaded. Indices
    follow when the body has ended well. Of shards that are replaced the indices go before the
    first upload, and surplus tars last.

    Raises UserError, before the body runs, where `output` is of a web server, cannot be written,
    or holds shards and `overwrite` is False; later as `megatron_hyena.data.remote.upload` does,
    and where the temporary disk is full.
    """
    if not is_remote(output):
        yield Destination(Path(output))
        return
    location = output.rstrip("/")
    _check_publishable(location, overwrite=overwrite, retry=retry)
    with TemporaryDirectory(prefix="shards-") as temporary:
        uploads = _Uploads(location, Path(temporary), retry)
        folder = Path(temporary) / "shards"
        try:
            yield Destination(folder, uploads.take)
            uploads.finish(folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"{temporary}: no space left for the shards before they are uploaded; set TMPDIR "
                f"to a folder with room for {AT_ONCE + 2} shards, or give a smaller --shard-size"
            ) from error
        finally:
            uploads.close()


def _check_publishable(location: str, *, overwrite: bool, retry: Retry | None) -> None:
    """Raise UserError where nothing may be written; leaves the mark of an unfinished upload."""
    if not location.startswith("s3://"):
        raise UserError(f"{location}: a web server takes no files; write to a folder or s3://")
    held = _indices(location, retry)
    if held and not overwrite:
        raise UserError(f"{held[0]} exists already; pass --overwrite to replace the shards there")
    with TemporaryDirectory() as temporary:
        mark = Path(temporary) / UNFINISHED
        mark.write_text("an upload of shards is under way, or was interrupted\n", encoding="utf-8")
        upload(mark, f"{location}/{UNFINISHED}", retry)


class _Uploads:
    """The shards of one corpus on their way to `location`."""

    def __init__(self, location: str, temporary: Path, retry: Retry | None) -> None:
        """`temporary`: a folder on the disk where the shards are cut."""
        self._location, self._retry = location, retry
        self._outgoing = temporary / "outgoing"
        self._there: set[str] | None = None
        self._taken: set[str] = set()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload")
        self._running: deque[Future[None]] = deque()

    def take(self, path: Path, shard: Shard) -> None:
        """Upload the file SPLIT/NAME and remove it, waiting while others are under way.

        Raises what went wrong with any that was taken before.
        """
        url = f"{self._location}/{path.parent.name}/{path.name}"
        held = self._begin()
        while len(self._running) >= AT_ONCE:
            self._running.popleft().result()
        own = self._outgoing / f"{path.parent.name}-{path.name}"
        os.replace(path, own)  # since the folder that it was cut in is renamed
        self._taken.add(url)
        self._running.append(self._pool.submit(self._send, own, url, shard, url in held))

    def finish(self, folder: Path) -> None:
        """Upload the indices in `folder` when all shards are there, and clear away the rest."""
        while self._running:
            self._running.popleft().result()
        for path in sorted(folder.rglob(INDEX_FILE)):
            upload(path, f"{self._location}/{path.relative_to(folder)}", self._retry)
        for url in self._tars() - self._taken:
            remove(url, self._retry)
        remove(f"{self._location}/{UNFINISHED}", self._retry)

    def close(self) -> None:
        """Let go of what is under way, and begin nothing more."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> set[str]:
        """Names of the tars that lay there before the first was taken; none has an index now."""
        if self._there is None:
            for index in _indices(self._location, self._retry):
                remove(index, self._retry)
            self._there = self._tars()
            self._outgoing.mkdir()
        return self._there

    def _send(self, path: Path, url: str, shard: Shard, held: bool) -> None:
        """Upload one file unless the same lies there; remove it here."""
        if not (held and holds(url, shard.bytes, shard.sha256, self._retry)):
            upload(path, url, self._retry, sha256=shard.sha256)
        path.unlink()

    def _tars(self) -> set[str]:
        found = find(f"{self._location}/*/*.tar*", self._retry)
        return {url for url, is_folder in found if not is_folder}


def _indices(location: str, retry: Retry | None) -> list[str]:
    """The index.json of every split at `location`, if it has any."""
    return [url for url, _ in find(f"{location}/*/{INDEX_FILE}", retry)]
