"""Whole objects of a store copied into a folder: once per machine, checked, and never half.

A copy is named by its SHA-256, so that it serves every corpus and run that asks for the same bytes
and is never out of date. Processes of one machine take turns; one that is killed leaves
a `.partial` file, with which the next goes on.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
from pathlib import Path

from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.remote import Retry, read_range
from megatron_hyena.data.shard_index import Shard
from megatron_hyena.errors import UserError
from megatron_hyena.runtime.lock import exclusive

LOCKS = ".locks"
"""Folder of the lock files, beside the copies."""


class DamagedError(UserError):
    """An object's bytes are not those that its index tells."""


def place_of(folder: Path, sha256: str) -> Path:
    """Where the copy of the object of this checksum lies, or would."""
    return folder / f"{sha256}.tar"


def fetch(url: str, folder: Path, *, bytes: int, sha256: str, retry: Retry | None = None) -> Path:
    """The copy of `url` in `folder`, made if it is not there; its size and SHA-256 are right.

    Of a copy that is there, the size alone is compared: it was checked when it was made.

    Raises:
        DamagedError: other bytes came, twice, than the index tells.
        UserError: the disk is full; also as `read_range` does.
    """
    target = place_of(folder, sha256)
    if _is_whole(target, bytes):
        return target
    with exclusive(folder / LOCKS / sha256):
        if _is_whole(target, bytes):
            return target
        partial = target.with_suffix(".partial")
        for attempt in (1, 2):
            _download(url, partial, bytes, retry)
            if sha256_of(partial) == sha256:
                os.replace(partial, target)
                return target
            partial.unlink()
            sys.stderr.write(f"{url}: attempt {attempt} of 2 gave bytes of another SHA-256\n")
        raise _damaged(url)


def fetch_shard(
    location: str, shard: Shard, folder: Path, *, remote: bool, retry: Retry | None = None
) -> Path:
    """The tar file of a shard in `folder`: a copy of `location`, unpacked where it is gzip.

    Raises what `fetch` raises.
    """
    size, sha256 = shard.bytes, shard.sha256
    if not shard.packed:
        return fetch(location, folder, bytes=size, sha256=sha256, retry=retry)
    target = place_of(folder, shard.unpacked_sha256)
    if _is_whole(target, shard.unpacked_bytes):
        return target
    packed = Path(location)
    if remote:
        packed = fetch(location, folder, bytes=size, sha256=sha256, retry=retry)
    with exclusive(folder / LOCKS / shard.unpacked_sha256):
        if not _is_whole(target, shard.unpacked_bytes):
            partial = target.with_suffix(".partial")
            _unpack(packed, partial, location)
            if sha256_of(partial) != shard.unpacked_sha256:
                partial.unlink()
                raise _damaged(location)
            os.replace(partial, target)
        if remote:
            packed.unlink(missing_ok=True)
    return target


def _unpack(packed: Path, partial: Path, location: str) -> None:
    from isal import igzip
    from isal.igzip_lib import IsalError

    try:
        with igzip.open(packed, "rb") as source, partial.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (EOFError, gzip.BadGzipFile, IsalError) as error:  # type: ignore[misc]
        raise _damaged(location) from error
    except OSError as error:
        raise _no_room(partial.parent, location, error) from error


def _damaged(location: str) -> DamagedError:
    return DamagedError(
        f"{location} is damaged: its SHA-256 is not the one in index.json; write it there again or "
        "run tools.make_shards"
    )


def _no_room(folder: Path, location: str, error: OSError) -> UserError:
    return UserError(
        f"{folder}: {error.strerror or error} while {location} was fetched; free some space "
        "there, or choose another data.cache_dir or a smaller data.cache_gigabytes"
    )


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _download(url: str, partial: Path, size: int, retry: Retry | None) -> None:
    """Append to `partial` what is missing of `size` bytes."""
    try:
        with partial.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            for block in read_range(url, file.tell(), size, retry):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except UserError:
        raise
    except OSError as error:
        raise _no_room(partial.parent, url, error) from error
