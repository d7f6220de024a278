"""Plain and gzip files read alike, in blocks or lines, with the ways they can be broken named."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from megatron_hyena.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors put before UTF-8 text."""
_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_MAGIC = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty last block of every bgzip file (SAM specification, 4.1.2)."""
_LINES_AT_ONCE = 1 << 20
_LONGEST_LINE = 1 << 24


class Digest(Protocol):
    """What `hashlib` returns."""

    def update(self, data: Any, /) -> None:
        """Take the next bytes."""


def read_blocks(
    path: Path, block_bytes: int = 1 << 22, digest: Digest | None = None
) -> Iterator[bytes]:
    """Yield the contents of `path`, plain, gzip or bgzip, in blocks of at most `block_bytes`.

    Compression is told by the first two bytes, not by the name. `digest` is shown the bytes of the
    file as they lie on disk; a byte order mark at the beginning is left out. Raises UserError where
    the file is missing, empty, compressed otherwise, or a damaged or truncated gzip file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the files in it")
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty; fetch or copy it again")
    with path.open("rb", buffering=0) as file:
        head = file.read(8)
        file.seek(0)
        for magic, program in _OTHER_MAGIC.items():
            if head.startswith(magic):
                raise UserError(f"{path} is compressed by {program}; unpack it, or use gzip")
        zipped = head.startswith(_GZIP_MAGIC)
        shown = _Shown(file, digest)
        blocks = _gzip_blocks(path, shown, block_bytes) if zipped else _plain(shown, block_bytes)
        start = b""
        while len(start) < len(_BYTE_ORDER_MARK) and (block := next(blocks, b"")):
            start += block
        start = start.removeprefix(_BYTE_ORDER_MARK)
        for at in range(0, len(start), block_bytes):
            yield start[at : at + block_bytes]
        yield from blocks


def read_start(path: Path, size: int = 1 << 12) -> bytes:
    """The first bytes of the contents, at most `size`; errors as `read_blocks`."""
    blocks = read_blocks(path, size)
    try:
        return next(blocks, b"")
    finally:
        blocks.close()  # type: ignore[attr-defined]  # a generator


def read_lines(
    path: Path, longest: int = _LONGEST_LINE, digest: Digest | None = None
) -> Iterator[str]:
    """Yield the lines of a plain or gzip text file without their line ends (LF, CRLF or CR).

    Bytes that are no UTF-8 become U+FFFD. Raises UserError as `read_blocks`, and for a line of
    more than `longest` bytes, with its number.
    """
    rest, number = b"", 0
    for block in read_blocks(path, _LINES_AT_ONCE, digest):
        text = rest + block
        lines = text.splitlines()
        # A CR at the end may be half of a CRLF.
        rest = b"" if text.endswith(b"\n") else lines.pop() + b"\r" * text.endswith(b"\r")
        if len(rest) > longest:
            raise UserError(
                f"{path}: line {number + len(lines) + 1} is longer than {longest >> 20} MiB; "
                "give a file of the kind that is asked for"
            )
        number += len(lines)
        for line in lines:
            yield line.decode("utf-8", errors="replace")
    for line in rest.splitlines():
        yield line.decode("utf-8", errors="replace")


class _Shown(io.RawIOBase):
    """A file that shows a digest what is read from it."""

    def __init__(self, file: io.FileIO, digest: Digest | None) -> None:
        self.file = file
        self.digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer) or 0
        if self.digest is not None:
            self.digest.update(memoryview(buffer)[:count])
        return count

    def read(self, size: int = -1) -> bytes:
        block = self.file.read(size)
        if self.digest is not None:
            self.digest.update(block)
        return block


def _plain(shown: _Shown, block_bytes: int) -> Iterator[bytes]:
    while block := shown.read(block_bytes):
        yield block


def _gzip_blocks(path: Path, shown: _Shown, block_bytes: int) -> Iterator[bytes]:
    from isal import igzip
    from isal.igzip_lib import IsalError

    _check_bgzf_end(path)
    try:
        with igzip.open(shown, "rb") as file:
            while block := file.read(block_bytes):
                yield block
    except EOFError as error:
        raise _truncated(path) from error
    except (gzip.BadGzipFile, IsalError, zlib.error) as error:  # type: ignore[misc]
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
