"""Whole folders appear at once or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_hyena.errors import UserError


@contextmanager
def atomic_folder(path: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yield an empty sibling of `path` to fill; rename it to `path` if the body succeeds.

    `marker` is a file, relative to the folder, that shows an existing folder to be of the same
    kind: with `overwrite`, only such a folder is replaced. What an interrupted run left behind is
    swept away by the next one.

    Raises UserError, before the body runs, where `path` exists and may not be replaced.
    """
    check_replaceable(path, marker=marker, overwrite=overwrite)
    partial = path.with_name(f".{path.name}.partial")
    outgoing = path.with_name(f".{path.name}.outgoing")
    for stale in (partial, outgoing):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            os.replace(path, outgoing)
        os.replace(partial, path)
        shutil.rmtree(outgoing, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield hidden siblings of `paths` to write; rename them, in order, if the body succeeds.

    Older files of these names are replaced.
    """
    hidden = tuple(path.with_name(f".{path.name}.partial") for path in paths)
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield hidden
        for written, path in zip(hidden, paths, strict=True):
            os.replace(written, path)
    finally:
        for path in hidden:
            path.unlink(missing_ok=True)


def check_replaceable(path: Path, *, marker: str, overwrite: bool) -> None:
    """Raise UserError where `path` exists and `atomic_folder` would not replace it."""
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists already; pass --overwrite to replace it")
    if not (path / marker).is_file():
        raise UserError(
            f"{path} exists and holds no {marker}, so it is not ours to overwrite; "
            "choose another --output"
        )


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
