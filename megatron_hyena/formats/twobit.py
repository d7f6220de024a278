"""UCSC's 2bit files (genome.ucsc.edu/FAQ/FAQformat.html#format7), versions 0 and 1.

Four bases a byte, with lists of the stretches that are N and of those that are lower case, in
either byte order. Version 1 differs by 64-bit offsets in the index. Other IUPAC codes were lost
when the file was made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import Digest
from megatron_hyena.formats.pieces import BLOCK, Piece, Records

MAGIC = {bytes.fromhex("4327411a"): "<", bytes.fromhex("1a412743"): ">"}
"""The first four bytes of a file, and numpy's sign of the byte order that they show."""

_LETTERS = np.frombuffer(b"TCAG", dtype=np.uint8)
_FOUR: npt.NDArray[np.uint8] = _LETTERS[np.arange(256)[:, None] >> np.array([6, 4, 2, 0]) & 3]
"""[256, 4] the bases of a packed byte, the first in its highest bits."""
_LOWER = 0x20


def read_twobit(
    path: Path,
    block_bytes: int = BLOCK,
    kind: SequenceType = SequenceType.DNA,
    digest: Digest | None = None,
) -> Iterator[Piece]:
    """Yield the records of a 2bit file in the order of its index, in pieces.

    No piece is longer than `block_bytes`. N and lower case are as `twoBitToFa` writes them.
    Raises UserError for a file that is no 2bit file, cut short, or contradicts itself, and where
    `kind` is no nucleic acid.
    """
    if not kind.is_nucleic:
        raise UserError(
            f"{path} is 2bit, which holds nucleotides, not {kind.name.lower()}; give FASTA"
        )
    records = Records(path, kind)
    with path.open("rb") as file:
        reader = _Reader(path, file, os.fstat(file.fileno()).st_size)
        for name, offset in reader.index():
            records.begin(name)
            sequence = reader.sequence(name, offset)
            step = max(4, block_bytes // 4 * 4)
            for start in range(0, sequence.length, step):
                end = min(start + step, sequence.length)
                yield records.piece(reader.bases(sequence, start, end)[: end - start])
    records.finish()
    if digest is not None:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)


@dataclass(frozen=True, eq=False)
class _Sequence:
    name: str
    length: int
    unknown: npt.NDArray[np.int64]
    """[blocks, 2] start and end of the stretches of N."""
    lower: npt.NDArray[np.int64]
    """[blocks, 2] start and end of the stretches in lower case."""
    place: int
    """Of the packed bases in the file."""


class _Reader:
    """A file in one of the two byte orders, of which nothing behind its end is read."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        magic = file.read(4)
        if magic not in MAGIC:
            raise UserError(f"{path} is no 2bit file: it begins with {magic!r}; give another")
        self.order = MAGIC[magic]

    def index(self) -> list[tuple[str, int]]:
        """Name and offset of each sequence."""
        version, count, _ = self._numbers("u4", 3, "header")
        if version not in (0, 1):
            raise UserError(f"{self.path} is 2bit of version {version}; versions 0 and 1 are known")
        if count == 0:
            raise UserError(f"{self.path} holds no sequence: it is empty; fetch it again")
        found = []
        for number in range(1, count + 1):
            size = self._read(1, f"index, at sequence {number}")[0]
            name = self._read(size, f"index, at sequence {number}").decode("utf-8", "replace")
            (offset,) = self._numbers("u8" if version else "u4", 1, f"index, at {name!r}")
            found.append((name, offset))
        return found

    def sequence(self, name: str, offset: int) -> _Sequence:
        """What the record at `offset` says of itself."""
        if offset > self.size:
            raise self._short(f"record {name!r}")
        self.file.seek(offset)
        (length,) = self._numbers("u4", 1, f"record {name!r}")
        unknown = self._blocks(name, "N", length)
        lower = self._blocks(name, "lower case", length)
        self._numbers("u4", 1, f"record {name!r}")
        sequence = _Sequence(name, length, unknown, lower, self.file.tell())
        if sequence.place + -(-length // 4) > self.size:
            raise self._short(f"record {name!r}")
        return sequence

    def bases(self, sequence: _Sequence, start: int, end: int) -> Bases:
        """Bases [start, end) and up to three more; `start` is a multiple of 4."""
        self.file.seek(sequence.place + start // 4)
        packed = self._read(-(-(end - start) // 4), f"record {sequence.name!r}")
        bases = _FOUR[np.frombuffer(packed, dtype=np.uint8)].reshape(-1)
        unknown = _inside(sequence.unknown, start, end)
        if unknown is not None:
            bases[: end - start][unknown] = ord("N")
        lower = _inside(sequence.lower, start, end)
        if lower is not None:
            bases[: end - start][lower] |= _LOWER
        return bases

    def _blocks(self, name: str, what: str, length: int) -> npt.NDArray[np.int64]:
        (count,) = self._numbers("u4", 1, f"record {name!r}")
        numbers = self._numbers("u4", 2 * count, f"record {name!r}").astype(np.int64)
        starts, sizes = numbers[:count], numbers[count:]
        blocks = np.stack([starts, starts + sizes], axis=1)
        if count and blocks.max() > length:
            raise UserError(
                f"{self.path}: record {name!r} has {length} bases, but a stretch of {what} that "
                f"ends at {blocks.max()}; the file is damaged: fetch it again"
            )
        return blocks[np.argsort(starts, kind="stable")]

    def _numbers(self, kind: str, count: int, where: str) -> npt.NDArray[np.int64]:
        dtype = np.dtype(self.order + kind)
        return np.frombuffer(self._read(count * dtype.itemsize, where), dtype=dtype).astype(
            np.int64
        )

    def _read(self, count: int, where: str) -> bytes:
        if self.file.tell() + count > self.size:
            raise self._short(where)
        return self.file.read(count)

    def _short(self, where: str) -> UserError:
        return UserError(f"{self.path}: the file ends within its {where}; fetch it again")


def _inside(blocks: npt.NDArray[np.int64], start: int, end: int) -> npt.NDArray[np.bool_] | None:
    """[end - start] whether a base of [start, end) lies in a block; None where none does."""
    found = blocks[(blocks[:, 0] < end) & (blocks[:, 1] > start)] - start
    if not len(found):
        return None
    edges = np.zeros(end - start + 1, dtype=np.int32)
    np.add.at(edges, np.maximum(found[:, 0], 0), 1)
    np.subtract.at(edges, np.minimum(found[:, 1], end - start), 1)
    return np.cumsum(edges[:-1], dtype=np.int32) > 0
