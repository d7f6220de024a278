"""Shards opened through their index: the pieces joined to runs, read by memory map.

Shards of a folder are checked and mapped when they are opened; those of a store are fetched and
mapped when they are first read (see `shard_cache`).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.data.pieces import AbsentPiece, Piece, StoredPiece
from megatron_hyena.data.shard_cache import ShardFile
from megatron_hyena.data.shard_index import INDEX_FILE, Sample, Shard, ShardIndex
from megatron_hyena.data.sources import Found, ShardSource, resolve
from megatron_hyena.data.tracks import DTYPES, Values, unknown_values
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class Origin:
    """A folder of shards that was opened."""

    folder: str
    digest: str
    """Of its content (see `ShardIndex.digest`), and of the names where not all shards are read."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the shards were made of, as their index tells."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the track `features`: each flag and the class that it tells of."""
    weight: float = 1.0
    """How often a base is drawn, relative to those of other weights."""


@dataclass(frozen=True)
class Run:
    """A longest stretch of a contig without a hole, however many pieces and shards it spans."""

    contig: str
    start: int
    length: int
    pieces: tuple[Piece, ...]
    """Payloads in order: memory maps, or what stands for those of a store's shards."""
    begins: tuple[int, ...]
    """Where each piece begins, in bases from the run's start."""
    type: SequenceType = SequenceType.DNA
    """What the contig is made of."""
    tracks: Mapping[str, tuple[Piece, ...]] = field(default_factory=dict)
    """The values of each track, in pieces like the bases."""
    folder: Path | str = ""
    """Where its shards lie."""
    origin: Origin | None = None
    """The folder as it was opened."""
    corrupt: CorruptShards | None = None
    """Counts the reads that meet shards which are left out."""

    def read(self, start: int, end: int) -> Bases:
        """A copy of bases [start, end) of the run, uint8 [end - start].

        What lies in a shard that is left out (see `CorruptShards`) is PAD, and counted. Raises
        UserError where a shard of a store cannot be had and is not to be left out.
        """
        bases = self._joined(self.pieces, start, end)
        if self.corrupt is not None and self.corrupt.shards:
            self.corrupt.count(self._absent(start, end))
        return bases

    def read_track(self, name: str, start: int, end: int) -> Values:
        """A copy of the values [end - start] of a track; NaN where the run lacks the track."""
        if name not in self.tracks:
            return unknown_values(DTYPES["float32"], end - start)
        return self._joined(self.tracks[name], start, end)

    def prefetch(self, start: int, end: int) -> None:
        """Have the shards under bases [start, end) fetched soon; nothing for those of a folder.

        Returns at once; what fails is raised where it is read.
        """
        for piece, _ in self._under(start, end):
            if isinstance(piece, StoredPiece):
                piece.file.want()

    def _joined(self, pieces: Sequence[Piece], start: int, end: int) -> Values:
        if not 0 <= start <= end <= self.length:
            raise ValueError(f"[{start}, {end}) is not within a run of {self.length} bases")
        parts = []
        number = bisect_right(self.begins, start) - 1
        while start < end:
            piece, begin = pieces[number], self.begins[number]
            stop = min(end, begin + len(piece))
            parts.append(piece[start - begin : stop - begin])
            start, number = stop, number + 1
        return np.concatenate(parts) if parts else np.empty(0, dtype=pieces[0].dtype)

    def _under(self, start: int, end: int) -> Iterator[tuple[Piece, int]]:
        """Each piece under bases [start, end), and how many of them it has."""
        number = bisect_right(self.begins, start) - 1
        while start < end:
            piece, begin = self.pieces[number], self.begins[number]
            stop = min(end, begin + len(piece))
            yield piece, stop - start
            start, number = stop, number + 1

    def _absent(self, start: int, end: int) -> int:
        """How many of bases [start, end) lie in shards that are left out."""
        under = self._under(start, end)
        return sum(count for piece, count in under if getattr(piece, "absent", False))


def open_runs(source: Path | str, *, verify: bool = True) -> list[Run]:
    """The runs of a folder of shards, or of a glob of folders or tar files, in order.

    Several of them may be given, parted by commas, such as a folder of DNA and one of protein; a
    `ShardSource` tells besides how shards of a store are kept and what becomes of damaged ones.
    `verify` reads every shard of a folder once and compares its SHA-256 with the index (those of a
    store are compared when they are fetched); sizes are always compared.

    Raises UserError where nothing matches, an index or a shard is missing, or a shard differs from
    its index and is not to be left out.
    """
    source = source if isinstance(source, ShardSource) else ShardSource(source)
    runs, resolved = list[Run](), resolve(source)
    source.corrupt.opened |= {found.name_of(shard) for found in resolved for shard in found.shards}
    for found in resolved:
        kind = _type_of(found.folder, found.index)
        located = [
            piece for shard in found.shards for piece in _pieces(found, shard, source, verify)
        ]
        origin = _origin(found)
        runs += [_run(origin, kind, group, source.corrupt) for group in _abutting(located)]
    return runs


@dataclass(frozen=True)
class _Piece:
    """A sample and where its payloads are read."""

    sample: Sample
    bases: Piece
    tracks: dict[str, Piece]


def _type_of(folder: str, index: ShardIndex) -> SequenceType:
    """The sequence type that the index names, whose track types are checked too."""
    if strange := [kind for kind in index.tracks.values() if kind not in DTYPES]:
        raise UserError(
            f"{folder}/{INDEX_FILE} has a track of {strange[0]!r}, not {', '.join(DTYPES)}; run "
            "tools.make_shards again"
        )
    try:
        return SequenceType.named(index.type)
    except UserError as error:
        raise UserError(f"{folder}/{INDEX_FILE}: {error}; run tools.make_shards again") from error


_Payload = Callable[[int, int, "np.dtype[Any]", bool], Piece]
"""(offset in the shard, number of values, their dtype, whether they are bases) → their piece."""


def _pieces(found: Found, shard: Shard, source: ShardSource, verify: bool) -> list[_Piece]:
    """The samples of one shard."""
    payload = _payload(found, shard, source, verify)
    pieces = []
    for sample in shard.samples:
        length = sample.end - sample.start
        bases = payload(sample.offset, length, np.dtype(np.uint8), True)
        tracks = {
            name: payload(sample.tracks[name], length, DTYPES[kind], False)
            for name, kind in found.index.tracks.items()
        }
        pieces.append(_Piece(sample, bases, tracks))
    return pieces


def _payload(found: Found, shard: Shard, source: ShardSource, verify: bool) -> _Payload:
    """How a shard's payloads are read: mapped, to be fetched, or left out."""
    where = found.name_of(shard)
    if found.remote or (shard.packed and _is_sound(Path(where), shard, source, verify)):
        file = ShardFile(where, shard, source.cache, source.corrupt, verify=verify)
        return partial(StoredPiece, file)
    if shard.packed or not _is_sound(Path(where), shard, source, verify):
        return AbsentPiece
    content = np.memmap(where, dtype=np.uint8, mode="r").view(np.ndarray)

    def mapped(offset: int, length: int, dtype: np.dtype[Any], is_bases: bool) -> Piece:
        return content[offset : offset + length * dtype.itemsize].view(dtype)

    return mapped


def _is_sound(path: Path, shard: Shard, source: ShardSource, verify: bool) -> bool:
    """Whether a shard of a folder is as its index tells; raises UserError, unless it is skipped."""
    try:
        _check(path, shard, verify)
    except UserError as error:
        source.corrupt.meet(str(path), error)
        return False
    return True


def _check(path: Path, shard: Shard, verify: bool) -> None:
    """Raise UserError where a shard of a folder is not as its index tells."""
    if not path.is_file():
        raise UserError(f"{path} is in {INDEX_FILE} but missing; copy it there again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(
            f"{path} has {size} bytes where {INDEX_FILE} says {shard.bytes}; copy it again or run "
            "tools.make_shards"
        )
    if verify and sha256_of(path) != shard.sha256:
        raise UserError(
            f"{path} is damaged: its SHA-256 is not the one in {INDEX_FILE}; copy it again or run "
            "tools.make_shards"
        )


def _abutting(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Group pieces that abut, in the order of the index."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        last = groups[-1][-1].sample if groups else None
        if last and (last.contig, last.end) == (piece.sample.contig, piece.sample.start):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _origin(found: Found) -> Origin:
    digest = found.index.digest
    if len(found.shards) < len(found.index.shards):
        names = " ".join(shard.file for shard in found.shards)
        digest = hashlib.sha256(f"{digest} {names}".encode()).hexdigest()
    index = found.index
    return Origin(found.folder, digest, index.provenance, index.labels, index.weight)


def _run(
    origin: Origin, kind: SequenceType, group: Sequence[_Piece], corrupt: CorruptShards
) -> Run:
    start = group[0].sample.start
    return Run(
        contig=group[0].sample.contig,
        start=start,
        length=group[-1].sample.end - start,
        pieces=tuple(piece.bases for piece in group),
        begins=tuple(piece.sample.start - start for piece in group),
        type=kind,
        tracks={name: tuple(piece.tracks[name] for piece in group) for name in group[0].tracks},
        folder=origin.folder,
        origin=origin,
        corrupt=corrupt,
    )
