"""Shards opened through their index: the pieces joined to runs, read by memory map."""

from __future__ import annotations

import glob
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.shard_index import INDEX_FILE, Sample, Shard, ShardIndex
from megatron_hyena.data.tracks import DTYPES, Values, unknown_values
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class Run:
    """A longest stretch of a contig without a hole, however many pieces and shards it spans."""

    contig: str
    start: int
    length: int
    pieces: tuple[Bases, ...]
    """Memory-mapped payloads, in order."""
    begins: tuple[int, ...]
    """Where each piece begins, in bases from the run's start."""
    type: SequenceType = SequenceType.DNA
    """What the contig is made of."""
    tracks: Mapping[str, tuple[Values, ...]] = field(default_factory=dict)
    """The values of each track, memory-mapped, in pieces like the bases."""
    folder: Path = Path()
    """Where its shards lie."""

    def read(self, start: int, end: int) -> Bases:
        """A copy of bases [start, end) of the run, uint8 [end - start]."""
        return self._joined(self.pieces, start, end)

    def read_into(self, row: Bases, start: int, end: int) -> None:
        """Copy bases [start, end) of the run to `row`, uint8 [end - start]."""
        if not 0 <= start <= end <= self.length:
            raise ValueError(f"[{start}, {end}) is not within a run of {self.length} bases")
        number = bisect_right(self.begins, start) - 1
        at = start
        while at < end:
            piece, begin = self.pieces[number], self.begins[number]
            stop = min(end, begin + len(piece))
            row[at - start : stop - start] = piece[at - begin : stop - begin]
            at, number = stop, number + 1

    def read_track(self, name: str, start: int, end: int) -> Values:
        """A copy of the values [end - start] of a track; NaN where the run lacks the track."""
        if name not in self.tracks:
            return unknown_values(DTYPES["float32"], end - start)
        return self._joined(self.tracks[name], start, end)

    def _joined(self, pieces: Sequence[Values], start: int, end: int) -> Values:
        if not 0 <= start <= end <= self.length:
            raise ValueError(f"[{start}, {end}) is not within a run of {self.length} bases")
        parts = [pieces[0][:0]]
        number = bisect_right(self.begins, start) - 1
        while start < end:
            piece, begin = pieces[number], self.begins[number]
            stop = min(end, begin + len(piece))
            parts.append(piece[start - begin : stop - begin])
            start, number = stop, number + 1
        return np.concatenate(parts)


def open_runs(source: Path | str, *, verify: bool = True) -> list[Run]:
    """The runs of a folder of shards, or of a glob of folders or tar files, in order.

    Several of them may be given, parted by commas, such as a folder of DNA and one of protein.
    `verify` reads every shard once and compares its SHA-256 with the index; sizes are always
    compared. Raises UserError where nothing matches, an index or a shard is missing, or a shard
    differs from its index.
    """
    runs: list[Run] = []
    for folder, index, shards in _resolve(source):
        kind = _type_of(folder, index)
        located = [
            piece
            for shard in shards
            for piece in _pieces(folder / shard.file, index, shard, verify)
        ]
        runs += [_run(folder, kind, group) for group in _abutting(located)]
    return runs


@dataclass(frozen=True)
class _Piece:
    """A sample and its memory maps."""

    sample: Sample
    bases: Bases
    tracks: dict[str, Values]


_Found = tuple[Path, ShardIndex, tuple[Shard, ...]]
"""A folder, its index, and those of its shards that are asked for."""


def source_names(source: Path | str) -> list[str]:
    """The folders or globs that `source` names, parted by commas.

    Raises UserError where one is empty.
    """
    if Path(source).exists() or "," not in str(source):
        return [str(source)]
    names = [name.strip() for name in str(source).split(",")]
    if "" in names:
        raise UserError(f"{str(source)!r} names a folder of shards too few; mind its commas")
    return names


def _resolve(source: Path | str) -> list[_Found]:
    """What `source` names: one folder or glob, or several parted by commas."""
    found = [one for name in source_names(source) for one in _resolve_one(name)]
    folders = [folder.resolve() for folder, _, _ in found]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(f"{source} names {twice[0]} twice; keep one")
    return found


def _resolve_one(pattern: str) -> list[_Found]:
    """Folders and, of each, the shards that a folder's name or a glob names."""
    if Path(pattern).is_dir():
        return [_select(Path(pattern), None)]
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if not matches:
        raise UserError(
            f"{pattern} matches no shards; name a folder that tools.make_shards wrote, or a glob"
        )
    chosen: dict[Path, set[str] | None] = {}
    for match in matches:
        if match.is_dir():
            chosen[match] = None
        elif match.name != INDEX_FILE:
            files = chosen.setdefault(match.parent, set())
            if files is not None:
                files.add(match.name)
    return [_select(folder, files) for folder, files in chosen.items()]


def _select(folder: Path, files: set[str] | None) -> _Found:
    """The shards of `folder`, all or those named."""
    index = ShardIndex.read(folder)
    if files is None:
        return folder, index, index.shards
    if strangers := files - {shard.file for shard in index.shards}:
        raise UserError(
            f"{folder / min(strangers)} is not in the folder's {INDEX_FILE}; narrow the glob "
            "or run tools.make_shards again"
        )
    return folder, index, tuple(shard for shard in index.shards if shard.file in files)


def _type_of(folder: Path, index: ShardIndex) -> SequenceType:
    """The sequence type that the index names, whose track types are checked too."""
    if strange := [kind for kind in index.tracks.values() if kind not in DTYPES]:
        raise UserError(
            f"{folder / INDEX_FILE} has a track of {strange[0]!r}, not {', '.join(DTYPES)}; run "
            "tools.make_shards again"
        )
    try:
        return SequenceType.named(index.type)
    except UserError as error:
        raise UserError(f"{folder / INDEX_FILE}: {error}; run tools.make_shards again") from error


def _pieces(path: Path, index: ShardIndex, shard: Shard, verify: bool) -> list[_Piece]:
    """Check one shard against its index and map its payloads."""
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
    content = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    pieces = []
    for sample in shard.samples:
        length = sample.end - sample.start
        bases = content[sample.offset : sample.offset + length]
        tracks = {}
        for name, kind in index.tracks.items():
            begin, size = sample.tracks[name], length * DTYPES[kind].itemsize
            tracks[name] = content[begin : begin + size].view(DTYPES[kind])
        pieces.append(_Piece(sample, bases, tracks))
    return pieces


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


def _run(folder: Path, kind: SequenceType, group: Sequence[_Piece]) -> Run:
    start = group[0].sample.start
    return Run(
        contig=group[0].sample.contig,
        start=start,
        length=group[-1].sample.end - start,
        pieces=tuple(piece.bases for piece in group),
        begins=tuple(piece.sample.start - start for piece in group),
        type=kind,
        tracks={name: tuple(piece.tracks[name] for piece in group) for name in group[0].tracks},
        folder=folder,
    )
