"""Tar files written member by member: the bytes of the standard library's, ten times as fast.

A shard of transcripts has a hundred thousand members of a few hundred bytes, of which the standard
library makes objects, reads them back and copies them. Here a header is a template with three
fields filled in; where one does not fit, the library writes it.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 136), slice(148, 156)
_LARGEST = 8**11


class TarWriter:
    """Writes a USTAR archive to an open file, and takes its size and SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self.size = 0
        self._file, self._digest = file, hashlib.sha256()
        self._template = bytearray(_header("", 0))
        self._template[_SUM] = b" " * 8

    def add(self, name: str, content: bytes) -> int:
        """Write a member; returns the offset of its first byte, in bytes from the file's start."""
        self._write(self._header(name, len(content)))
        offset = self.size
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> str:
        """Write the end of the archive; returns the file's hexadecimal SHA-256."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        return self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def _header(self, name: str, size: int) -> bytes:
        encoded = name.encode("ascii")
        if len(encoded) > _NAME.stop or size >= _LARGEST:
            return _header(name, size)
        header = self._template.copy()
        header[: len(encoded)] = encoded
        header[_SIZE] = b"%011o\0" % size
        header[_SUM] = b"%06o\0 " % sum(header)
        return bytes(header)


def _header(name: str, size: int) -> bytes:
    """As WebDataset writes it, so that its readers find what they know (read-only, no owner)."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o444, 0
    return member.tobuf(tarfile.USTAR_FORMAT)
