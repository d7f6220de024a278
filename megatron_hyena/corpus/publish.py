"""Shards written to an object store: every tar first, the indices last.

A reader opens a folder of shards by its index.json, so an upload that was interrupted leaves
nothing that looks whole.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_hyena.data.remote import Retry, find, is_remote, remove, upload
from megatron_hyena.data.shard_index import INDEX_FILE
from megatron_hyena.errors import UserError

UNFINISHED = ".unfinished"
"""An object that lies at the location from before the first upload until after the last."""


@contextmanager
def destination(output: str, *, overwrite: bool, retry: Retry | None = None) -> Iterator[Path]:
    """Yield the folder to write: `output` itself, or for s3:// a temporary one to be uploaded.

    The temporary folder (under $TMPDIR) holds the whole corpus until it is uploaded.

    Raises UserError, before the body runs, where `output` is of a web server, cannot be written,
    or holds shards and `overwrite` is False.
    """
    if not is_remote(output):
        yield Path(output)
        return
    location = output.rstrip("/")
    check_publishable(location, overwrite=overwrite, retry=retry)
    with TemporaryDirectory(prefix="shards-") as temporary:
        folder = Path(temporary) / "shards"
        try:
            yield folder
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"{temporary}: no space left for the shards before they are uploaded; set TMPDIR "
                "to a folder with room for the whole corpus"
            ) from error
        publish(folder, location, overwrite=overwrite, retry=retry)


def check_publishable(location: str, *, overwrite: bool, retry: Retry | None = None) -> None:
    """Raise UserError where `publish` would; leaves the mark of an unfinished upload."""
    if not location.startswith("s3://"):
        raise UserError(f"{location}: a web server takes no files; write to a folder or s3://")
    held = _indices(location, retry)
    if held and not overwrite:
        raise UserError(f"{held[0]} exists already; pass --overwrite to replace the shards there")
    with TemporaryDirectory() as temporary:
        mark = Path(temporary) / UNFINISHED
        mark.write_text("an upload of shards is under way, or was interrupted\n", encoding="utf-8")
        upload(mark, f"{location}/{UNFINISHED}", retry)


def publish(
    folder: Path, location: str, *, overwrite: bool = False, retry: Retry | None = None
) -> None:
    """Upload a folder of splits, as `write_shards` left it, to `location`, an s3:// prefix.

    What it replaces loses its indices first, and its surplus tars last. Raises UserError as
    `check_publishable` and `megatron_hyena.data.remote.upload` do.
    """
    check_publishable(location, overwrite=overwrite, retry=retry)
    for index in _indices(location, retry):
        remove(index, retry)
    files = {f"{location}/{p.relative_to(folder)}": p for p in folder.rglob("*") if p.is_file()}
    for url in sorted(files, key=lambda url: (url.endswith(f"/{INDEX_FILE}"), url)):
        upload(files[url], url, retry)
    for url, is_folder in find(f"{location}/*/*.tar*", retry):
        if not is_folder and url not in files:
            remove(url, retry)
    remove(f"{location}/{UNFINISHED}", retry)


def _indices(location: str, retry: Retry | None) -> list[str]:
    """The index.json of every split at `location`, if it has any."""
    return [url for url, _ in find(f"{location}/*/{INDEX_FILE}", retry)]
