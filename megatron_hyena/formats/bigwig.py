"""bigWig files (Kent et al. 2010, supplementary tables 5 to 14), read without a library.

Every offset and count is checked against the file before it is followed, so a damaged file is
refused; libraries in C end the whole process on some.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_hyena.errors import UserError

MAGIC = {bytes.fromhex("26fc8f88"): "<", bytes.fromhex("888ffc26"): ">"}
"""The first four bytes of a file, and the sign of the byte order that they show."""

_CONTIG_TREE, _INDEX = 0x78CA8C91, 0x2468ACE0
_DEEPEST = 20
"""Levels of a tree; at 256 children a node, more than any file has."""
_BEDGRAPH, _VARIABLE, _FIXED = 1, 2, 3


class Section(NamedTuple):
    """Stretches of one contig, n of them, from one block of the file."""

    contig: str
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


class BigWig:
    """A file opened for reading, a context; raises UserError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size
        self._file = path.open("rb")
        try:
            magic = self._at(0, 4)
            if magic not in MAGIC:
                raise self._damaged("it begins otherwise")
            self._order = MAGIC[magic]
            header = self._unpack(4, "HHQQQHHQQI")
            self._index, self._unzipped = header[4], header[9]
            self.contigs = dict(self._contigs(header[2]))
        except BaseException:
            self._file.close()
            raise

    contigs: Mapping[int, tuple[str, int]]
    """Number → (name, length in bases)."""

    def __enter__(self) -> BigWig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def sections(self) -> Iterator[Section]:
        """Yield every block of values, in the order of the index."""
        magic, _, count = self._unpack(self._index, "IIQ")
        if magic != _INDEX:
            raise self._damaged("its index is not where its header says")
        found = 0
        for *_, place, size in self._leaves(self._index + 48, "IIIIQQ", "IIIIQ", _DEEPEST):
            found += 1
            yield self._section(place, size)
        if found != count:
            raise self._damaged(f"its index tells of {count} blocks and has {found}")

    def _contigs(self, place: int) -> Iterator[tuple[int, tuple[str, int]]]:
        magic, _, key, value, count = self._unpack(place, "IIIIQ")
        if magic != _CONTIG_TREE or value != 8 or not 0 < key < 1 << 16:
            raise self._damaged("its list of contigs is not where its header says")
        found = 0
        for raw, number, length in self._leaves(place + 32, f"{key}sII", f"{key}sQ", _DEEPEST):
            found += 1
            yield number, (raw.rstrip(b"\0").decode("utf-8", "replace"), length)
        if found != count:
            raise self._damaged(f"it tells of {count} contigs and has {found}")

    def _leaves(self, place: int, leaf: str, branch: str, levels: int) -> Iterator[tuple]:
        """The items of the leaves below the node at `place`; `leaf`, `branch`: their forms."""
        is_leaf, _, count = self._unpack(place, "BBH")
        if is_leaf not in (0, 1) or levels == 0:
            raise self._damaged("its index is no tree")
        form = leaf if is_leaf else branch
        step = struct.calcsize(self._order + form)
        raw = self._at(place + 4, count * step)
        for item in struct.iter_unpack(self._order + form, raw):
            if is_leaf:
                yield item
            else:
                yield from self._leaves(item[-1], leaf, branch, levels - 1)

    def _section(self, place: int, size: int) -> Section:
        raw = self._at(place, size)
        if self._unzipped:
            try:
                raw = zlib.decompress(raw)
            except zlib.error as error:
                raise self._damaged(f"a block cannot be unzipped, {error}") from error
        head = struct.Struct(self._order + "IIIIIBBH")
        if len(raw) < head.size:
            raise self._damaged("a block is shorter than its header")
        number, start, _, step, span, kind, _, count = head.unpack(raw[: head.size])
        width = {_BEDGRAPH: 3, _VARIABLE: 2, _FIXED: 1}.get(kind, 0)
        if number not in self.contigs or not width or len(raw) != head.size + 4 * width * count:
            raise self._damaged("a block is of no known contig, kind or size")
        body = raw[head.size :]
        whole = np.frombuffer(body, dtype=self._order + "u4").reshape(count, width)
        values = np.frombuffer(body, dtype=self._order + "f4").reshape(count, width)[:, -1]
        starts = (
            start + step * np.arange(count, dtype=np.int64)
            if kind == _FIXED
            else whole[:, 0].astype(np.int64)
        )
        ends = whole[:, 1].astype(np.int64) if kind == _BEDGRAPH else starts + span
        name, length = self.contigs[number]
        if np.any(starts >= ends) or np.any(ends > length):
            raise self._damaged(f"it has values outside {name!r}, which has {length} bases there")
        return Section(name, starts, ends, values.astype(np.float32))

    def _unpack(self, place: int, form: str) -> tuple:
        form = self._order + form
        return struct.unpack(form, self._at(place, struct.calcsize(form)))

    def _at(self, place: int, size: int) -> bytes:
        if place + size > self._size:
            raise self._damaged("it ends before what its index points at")
        self._file.seek(place)
        return self._file.read(size)

    def _damaged(self, how: str) -> UserError:
        return UserError(f"{self.path} is a damaged bigWig file ({how}); fetch it again")
