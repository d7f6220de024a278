"""From a genome store to WebDataset shards of long pieces.

    shards/train/shard-000000.tar   members KEY.bases (raw bytes, one per base) and KEY.json
                                    (contig, start, end, split), and KEY.features when asked;
                                    KEY.NAME of each track asked for (little-endian float32, or
                                    one byte per mark)
    shards/train/index.json         see shard_index.py
    shards/valid/…  shards/test/…

Neighbouring pieces of a contig abut, so a reader may run windows across them. A piece that holds
nothing but N (of protein: X) is left out. The same store and settings give the same bytes.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from megatron_hyena.corpus.splits import SplitRule, Stretch, split_contigs
from megatron_hyena.data.alphabet import unknown_letters
from megatron_hyena.data.atomic import atomic_folder, sha256_of
from megatron_hyena.data.shard_index import INDEX_FILE, Sample, Shard, ShardIndex
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.tracks import DTYPES, check_track_name, stored_dtype
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class ShardSettings:
    """How pieces and tar files are cut. Raises UserError for lengths that are not positive."""

    rule: SplitRule = field(default_factory=SplitRule)
    piece_length: int = 1 << 17
    """Bases of one sample."""
    shard_size: int = 1 << 26
    """Bases of one tar file, at most (but one piece at least)."""
    features: bool = False
    """Also write the flags of `tracks/features`."""
    tracks: tuple[str, ...] = ()
    """Names of the tracks to write beside the bases."""

    def __post_init__(self) -> None:
        for name in self.tracks:
            check_track_name(name)
        if len(set(self.tracks)) < len(self.tracks):
            raise UserError(f"the tracks {' '.join(self.tracks)} hold a name twice; keep one")
        if self.piece_length < 1 or self.shard_size < 1:
            raise UserError("the piece length and the shard size must be 1 base or more")


def write_shards(
    store: GenomeStore,
    output: Path,
    settings: ShardSettings,
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda bases: None,
) -> dict[str, ShardIndex]:
    """Write `output` (a folder, it appears whole); returns the index of each split.

    `progress` is told the bases of each piece. Raises UserError where `output` exists already,
    where a split would get no bases, and where features or a track are asked of a store without
    them.
    """
    stretches = split_contigs(store.contigs, settings.rule)
    for split in settings.rule.splits:
        if not any(stretch.split == split for stretch in stretches):
            raise _no_bases(split, store)
    if settings.features:
        store.track("features")
    for name in settings.tracks:
        stored_dtype(store, name)
    indices: dict[str, ShardIndex] = {}
    with atomic_folder(output, marker=f"train/{INDEX_FILE}", overwrite=overwrite) as partial:
        for split in settings.rule.splits:
            folder = partial / split
            folder.mkdir()
            chosen = [stretch for stretch in stretches if stretch.split == split]
            index = _write_split(store, folder, split, chosen, settings, progress)
            if index.bases == 0:
                raise _no_bases(split, store)
            indices[split] = index
    return indices


def _no_bases(split: str, store: GenomeStore) -> UserError:
    option = "--gap" if split == "train" else f"--gap, or --{split}-fraction 0"
    longest = max(contig.length for contig in store.contigs)
    return UserError(
        f"{store.path}: the {split} split gets no bases (the longest contig has {longest}); "
        f"give a smaller {option}"
    )


@dataclass(frozen=True)
class _Piece:
    stretch: Stretch
    key: str
    start: int
    end: int


_Sample = tuple[_Piece, dict[str, str | bytes]]
"""A piece and what WebDataset writes for it."""


def _write_split(
    store: GenomeStore,
    folder: Path,
    split: str,
    stretches: Sequence[Stretch],
    settings: ShardSettings,
    progress: Callable[[int], object],
) -> ShardIndex:
    """Fill tar files one after another and write the index."""
    shards: list[Shard] = []
    samples = _samples(store, stretches, settings, progress)
    first = next(samples, None)
    while first is not None:
        path = folder / f"shard-{len(shards):06d}.tar"
        first, places = _write_tar(path, first, samples, settings.shard_size)
        shards.append(_describe(path, places, settings.tracks))
    bases = sum(sample.end - sample.start for shard in shards for sample in shard.samples)
    index = ShardIndex(
        split=split,
        bases=bases,
        gap=settings.rule.gap,
        shards=tuple(shards),
        type=store.type.name.lower(),
        tracks={name: stored_dtype(store, name) for name in settings.tracks},
    )
    index.write(folder)
    return index


def _pieces(store: GenomeStore, stretches: Sequence[Stretch], length: int) -> Iterator[_Piece]:
    numbers = {contig.name: number for number, contig in enumerate(store.contigs)}
    for stretch in stretches:
        for start in range(stretch.start, stretch.end, length):
            key = f"{stretch.split}-{numbers[stretch.contig]:06d}-{start:012d}"
            yield _Piece(stretch, key, start, min(start + length, stretch.end))


def _samples(
    store: GenomeStore,
    stretches: Sequence[Stretch],
    settings: ShardSettings,
    progress: Callable[[int], object],
) -> Iterator[_Sample]:
    """Each piece with the sample that WebDataset writes for it."""
    features = store.track("features") if settings.features else None
    tracks = [store.track(name) for name in settings.tracks]
    for piece in _pieces(store, stretches, settings.piece_length):
        contig = piece.stretch.contig
        bases = store.read(contig, piece.start, piece.end)
        progress(len(bases))
        if unknown_letters(store.type, bases).all():
            continue
        description = {
            "contig": contig,
            "start": piece.start,
            "end": piece.end,
            "split": piece.stretch.split,
        }
        sample: dict[str, str | bytes] = {
            "__key__": piece.key,
            "bases": bases.tobytes(),
            "json": json.dumps(description).encode("utf-8"),
        }
        if features is not None:
            sample["features"] = features.read(contig, piece.start, piece.end).tobytes()
        for track in tracks:
            values = track.read(contig, piece.start, piece.end)
            sample[track.name] = values.astype(DTYPES[values.dtype.name]).tobytes()
        yield piece, sample


def _write_tar(
    path: Path,
    first: _Sample,
    others: Iterator[_Sample],
    shard_size: int,
) -> tuple[_Sample | None, list[_Piece]]:
    """Write samples up to `shard_size` bases; returns the one that did not fit, and the pieces."""
    from webdataset.writer import TarWriter

    written: list[_Piece] = []
    size = 0
    with (
        path.open("wb") as file,
        TarWriter(file, user="", group="", mtime=0, encoder=False) as writer,
    ):
        for piece, sample in chain([first], others):
            length = piece.end - piece.start
            if written and size + length > shard_size:
                return (piece, sample), written
            writer.write(sample)
            written.append(piece)
            size += length
    return None, written


def _describe(path: Path, pieces: Sequence[_Piece], tracks: Sequence[str]) -> Shard:
    """Find the payloads in the finished tar file and take its checksum."""
    with tarfile.open(path) as tar:
        offsets = {member.name: member.offset_data for member in tar}
    samples = tuple(
        Sample(
            key=piece.key,
            contig=piece.stretch.contig,
            start=piece.start,
            end=piece.end,
            offset=offsets[f"{piece.key}.bases"],
            tracks={name: offsets[f"{piece.key}.{name}"] for name in tracks},
        )
        for piece in pieces
    )
    return Shard(path.name, path.stat().st_size, sha256_of(path), samples)
