"""One tar file of shards: the pieces it was given, read from their stores.

    KEY.bases     raw bytes, one per base          KEY.json   contig, start, end, split
    KEY.NAME      of each track asked for, the labels (`features`) among them

A piece that holds nothing but N (of protein: X) is left out; a file may so hold none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from megatron_hyena.corpus.pieces import Piece
from megatron_hyena.corpus.tar_writer import TarWriter
from megatron_hyena.data.alphabet import Bases, SequenceType, unknown_letters
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.shard_index import Sample, Shard
from megatron_hyena.data.store import GenomeStore, Track
from megatron_hyena.data.tracks import DTYPES, Values, unknown_values
from megatron_hyena.errors import UserError

_GZIP_LEVEL = 1
"""Of isal: smaller files of nucleotides than its other levels and zlib's, at 400 MB/s."""

StoreOf = Callable[[str], GenomeStore]
"""The store of a sample's name."""


def _as_they_are(bases: Bases, kind: SequenceType) -> Bases:
    return bases


@dataclass(frozen=True)
class Layers:
    """What is written of each piece."""

    tracks: Mapping[str, str] = field(default_factory=dict)
    """Name → what its values are, a name in `DTYPES`."""
    curate: Callable[[Bases, SequenceType], Bases] = _as_they_are
    """The bases as they are written, such as IUPAC codes turned to N; of the same length."""


def write_shard(
    path: Path,
    split: str,
    pieces: Sequence[Piece],
    store_of: StoreOf,
    layers: Layers,
    progress: Callable[[int], object] = lambda bases: None,
) -> Shard:
    """Write the tar file `path`, which appears whole, and describe it for the index.

    A name that ends in .gz asks for gzip, which readers unpack once (see `data.fetch`).

    Numbers of a track that a store lacks are written as unknown. `progress` is told the bases of
    each piece. The same stores and pieces give the same bytes. Raises UserError for marks of a
    track that a store lacks, and for a track of another kind than `layers` says.
    """
    written: list[Sample] = []
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    packed = partial.with_name(f"{partial.name}.packed")
    try:
        with partial.open("wb") as file:
            tar = TarWriter(file)
            for piece, members in _samples(split, pieces, store_of, layers):
                offsets = {
                    ending: tar.add(f"{piece.key}.{ending}", content)
                    for ending, content in sorted(members.items())
                }
                if members:
                    written.append(_sample(piece, offsets, layers.tracks))
                progress(piece.length)
            sha256 = tar.finish()
        shard = Shard(path.name, tar.size, sha256, tuple(written))
        if path.suffix == ".gz":
            shard = _pack(partial, packed, shard)
            os.replace(packed, path)
        else:
            os.replace(partial, path)
    finally:
        for leftover in (partial, packed):
            leftover.unlink(missing_ok=True)
    return shard


def _pack(tar: Path, packed: Path, shard: Shard) -> Shard:
    """Compress a tar file: the same bytes for the same bytes, without name or time."""
    from isal import igzip

    with (
        tar.open("rb") as source,
        packed.open("wb") as file,
        igzip.IGzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    return replace(
        shard,
        bytes=packed.stat().st_size,
        sha256=sha256_of(packed),
        unpacked_bytes=shard.bytes,
        unpacked_sha256=shard.sha256,
    )


def _samples(
    split: str, pieces: Sequence[Piece], store_of: StoreOf, layers: Layers
) -> Iterator[tuple[Piece, dict[str, bytes]]]:
    """Each piece with its members by their endings: none of one without a known letter."""
    opened: dict[str, dict[str, Track]] = {}
    for piece in pieces:
        store = store_of(piece.sample)
        if piece.sample not in opened:
            opened[piece.sample] = {name: store.track(name) for name in store.tracks}
        found = opened[piece.sample]
        place = (piece.contig, piece.start, piece.end)
        bases = layers.curate(store.read(*place), store.type)
        if unknown_letters(store.type, bases).all():
            yield piece, {}
            continue
        description = {
            "contig": piece.name,
            "start": piece.start,
            "end": piece.end,
            "split": split,
        }
        sample = {
            "bases": bases.tobytes(),
            "json": json.dumps(description).encode("utf-8"),
        }
        for name, kind in layers.tracks.items():
            values = _values(store, name, kind, found.get(name), piece)
            sample[name] = values.astype(DTYPES[kind]).tobytes()
        yield piece, sample


def _values(store: GenomeStore, name: str, kind: str, track: Track | None, piece: Piece) -> Values:
    if track is not None and track.array.dtype.name == kind:
        return track.read(piece.contig, piece.start, piece.end)
    if track is not None:
        raise UserError(
            f"{store.path}: the track {name!r} holds {track.array.dtype.name}, that of other "
            f"samples {kind}; give them tracks of one kind"
        )
    if DTYPES[kind].kind == "f":
        return unknown_values(DTYPES[kind], piece.length)
    raise UserError(
        f"{store.path} has no track {name!r}, and marks are not unknown as numbers can be; write "
        "the track or leave the sample out"
    )


def _sample(piece: Piece, offsets: Mapping[str, int], tracks: Mapping[str, str]) -> Sample:
    """For the index: where the payloads of a piece lie."""
    return Sample(
        key=piece.key,
        contig=piece.name,
        start=piece.start,
        end=piece.end,
        offset=offsets["bases"],
        tracks={track: offsets[track] for track in tracks},
    )
