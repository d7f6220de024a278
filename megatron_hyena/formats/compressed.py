"""Plain and gzip files read alike, in blocks, with the ways they can be broken named."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

from megatron_hyena.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty last block of every bgzip file (SAM specification, 4.1.2)."""


def read_blocks(path: Path, block_bytes: int = 1 << 22) -> Iterator[bytes]:
    """Yield the contents of `path`, plain, gzip or bgzip, in blocks of at most `block_bytes`.

    Compression is told by the first two bytes, not by the name. Raises UserError where the file
    is missing, empty, or a damaged or truncated gzip file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the files in it")
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; fetch or copy it again")
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
    yield from _gzip_blocks(path, block_bytes) if zipped else _plain_blocks(path, block_bytes)


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a plain or gzip text file without their line ends; errors as above."""
    rest = b""
    for block in read_blocks(path):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", errors="replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", errors="replace").rstrip("\r")


def _plain_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(block_bytes):
            yield block


def _gzip_blocks(path: Path, block_bytes: int) -> Iterator[bytes]:
    from isal import igzip
    from isal.igzip_lib import IsalError

    _check_bgzf_end(path)
    try:
        with igzip.open(path, "rb") as file:
            while block := file.read(block_bytes):
                yield block
    except EOFError as error:
        raise _truncated(path) from error
    except (gzip.BadGzipFile, IsalError) as error:  # type: ignore[misc]  # isal's stub is wrong
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch it again") from error


def _check_bgzf_end(path: Path) -> None:
    """A bgzip file cut between two blocks still decompresses: its end mark tells."""
    with path.open("rb") as file:
        head = file.read(16)
        if head[3:4] != b"\x04" or head[12:14] != b"BC":
            return
        file.seek(max(0, path.stat().st_size - len(_BGZF_END)), os.SEEK_SET)
        if file.read() != _BGZF_END:
            raise _truncated(path)


def _truncated(path: Path) -> UserError:
    return UserError(f"{path} is a truncated gzip file: its end is missing; fetch it again")
