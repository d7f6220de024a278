"""A genome store's own checksums: what a copy of it alone can be compared with.

They are in the attributes of the group, since a foreign file in its folder would trouble Zarr:

    zarr.json   attributes.files   path in the store → [size in bytes, SHA-256], all but zarr.json
                attributes.digest  SHA-256 of zarr.json itself without these 64 characters

So a changed, missing or foreign file is noticed, and a change of the list too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.errors import UserError

STORE_FILE = "zarr.json"
"""Of the group: what makes a folder a store."""
_EMPTY = b'"digest": ""'

Sums = dict[str, tuple[int, str]]
"""Path relative to the store → size in bytes and SHA-256."""


class DamagedStoreError(UserError):
    """The list of checksums itself is not as it was written."""


def is_store(folder: Path) -> bool:
    """Whether it looks like a genome store, whole or not."""
    return (folder / STORE_FILE).is_file() and (folder / "bases").is_dir()


def seal_store(store: Path) -> None:
    """Take the checksums of all files of `store` and write them into its `zarr.json`."""
    _write(store, _sums_below(store, store))


def seal_track(store: Path, name: str) -> None:
    """The same after `tracks/NAME` was written: other files keep the checksums that they had.

    So damage done before is still noticed. A store without checksums stays without.
    """
    before = _content(store)["attributes"].get("files")
    if before is None:
        return
    folder = f"tracks/{name}/"
    kept = {path: (size, sha256) for path, (size, sha256) in before.items()}
    kept = {path: told for path, told in kept.items() if not path.startswith(folder)}
    group = store / "tracks" / STORE_FILE  # the track may be the first one
    kept |= {str(group.relative_to(store)): (group.stat().st_size, sha256_of(group))}
    _write(store, kept | _sums_below(store, store / folder))


def read_sums(store: Path) -> Sums:
    """The checksums in `zarr.json`, which is checked itself.

    Raises UserError where there are none, and DamagedStoreError where `zarr.json` is not as it was
    written.
    """
    path = store / STORE_FILE
    data = path.read_bytes()
    try:
        attributes = json.loads(data)["attributes"]
        files, digest = attributes.get("files"), attributes.get("digest")
        known = files is not None or digest is not None
        if known and _digest_without(data, f'"digest": "{digest}"'.encode()) != digest:
            raise ValueError("its digest does not match its content")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedStoreError(
            f"{path} is damaged ({error}); copy the store again, or make it anew with "
            "tools.prepare_genome"
        ) from error
    if not known:
        raise UserError(
            f"{store} has no checksums, since an earlier version made it, so nothing tells "
            "whether its files are whole; make it anew with tools.prepare_genome"
        )
    return {name: (size, sha256) for name, (size, sha256) in files.items()}


def _content(store: Path) -> dict[str, dict[str, Sums]]:
    content: dict[str, dict[str, Sums]] = json.loads((store / STORE_FILE).read_bytes())
    return content


def _sums_below(store: Path, folder: Path) -> Sums:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(store)): (path.stat().st_size, sha256_of(path))
        for path in files
        if path != store / STORE_FILE
    }


def _write(store: Path, sums: Sums) -> None:
    content = _content(store)
    for name in ("files", "digest"):
        content["attributes"].pop(name, None)
    content["attributes"] |= {"files": dict(sorted(sums.items())), "digest": ""}  # type: ignore[dict-item]
    data = json.dumps(content, indent=2).encode("utf-8")
    head, empty, tail = data.rpartition(_EMPTY)
    digest = hashlib.sha256(head + empty + tail).hexdigest()
    partial = store / f".{STORE_FILE}.{os.getpid()}"
    partial.write_bytes(head + empty.replace(b'""', f'"{digest}"'.encode()) + tail)
    os.replace(partial, store / STORE_FILE)


def _digest_without(data: bytes, named: bytes) -> str:
    """SHA-256 of `data` with its last `named` emptied; nothing where it is not there."""
    head, found, tail = data.rpartition(named)
    return hashlib.sha256(head + _EMPTY + tail).hexdigest() if found else ""
