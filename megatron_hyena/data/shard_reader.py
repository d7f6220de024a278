"""Shards opened through their index: the pieces joined to runs, read by memory map."""

from __future__ import annotations

import glob
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_hyena.data.alphabet import Bases
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.shard_index import INDEX_FILE, Sample, Shard, ShardIndex
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

    def read(self, start: int, end: int) -> Bases:
        """A copy of bases [start, end) of the run, uint8 [end - start]."""
        if not 0 <= start <= end <= self.length:
            raise ValueError(f"[{start}, {end}) is not within a run of {self.length} bases")
        parts = []
        number = bisect_right(self.begins, start) - 1
        while start < end:
            piece, begin = self.pieces[number], self.begins[number]
            stop = min(end, begin + len(piece))
            parts.append(piece[start - begin : stop - begin])
            start, number = stop, number + 1
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint8)


def open_runs(source: Path | str, *, verify: bool = True) -> list[Run]:
    """The runs of a folder of shards, or of a glob of folders or tar files, in order.

    `verify` reads every shard once and compares its SHA-256 with the index; sizes are always
    compared. Raises UserError where nothing matches, an index or a shard is missing, or a shard
    differs from its index.
    """
    runs: list[Run] = []
    for folder, shards in _resolve(source):
        located = [
            (sample, payload)
            for shard in shards
            for sample, payload in zip(
                shard.samples, _payloads(folder / shard.file, shard, verify), strict=True
            )
        ]
        runs += _join(located)
    return runs


def _resolve(source: Path | str) -> list[tuple[Path, tuple[Shard, ...]]]:
    """Folders and, of each, the shards that `source` names."""
    pattern = str(source)
    if Path(pattern).is_dir():
        return [(Path(pattern), ShardIndex.read(Path(pattern)).shards)]
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
    return [(folder, _select(folder, files)) for folder, files in chosen.items()]


def _select(folder: Path, files: set[str] | None) -> tuple[Shard, ...]:
    """The shards of `folder`, all or those named."""
    shards = ShardIndex.read(folder).shards
    if files is None:
        return shards
    if strangers := files - {shard.file for shard in shards}:
        raise UserError(
            f"{folder / min(strangers)} is not in the folder's {INDEX_FILE}; narrow the glob "
            "or run tools.make_shards again"
        )
    return tuple(shard for shard in shards if shard.file in files)


def _payloads(path: Path, shard: Shard, verify: bool) -> list[Bases]:
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
    return [content[s.offset : s.offset + s.end - s.start] for s in shard.samples]


def _join(located: Sequence[tuple[Sample, Bases]]) -> list[Run]:
    """Group pieces that abut, in the order of the index."""
    runs: list[Run] = []
    group: list[tuple[Sample, Bases]] = []
    for sample, payload in located:
        if group and (group[-1][0].contig, group[-1][0].end) != (sample.contig, sample.start):
            runs.append(_run(group))
            group = []
        group.append((sample, payload))
    return [*runs, _run(group)] if group else runs


def _run(group: Sequence[tuple[Sample, Bases]]) -> Run:
    start = group[0][0].start
    return Run(
        contig=group[0][0].contig,
        start=start,
        length=group[-1][0].end - start,
        pieces=tuple(payload for _, payload in group),
        begins=tuple(sample.start - start for sample, _ in group),
    )
