"""Write a genome store from FASTA, annotation and track files, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_hyena import __version__
from megatron_hyena.corpus.labels import LEGEND, LabelledIntervals, label_genome
from megatron_hyena.corpus.tracks import write_track_file
from megatron_hyena.data.alphabet import Bases, Mask, SequenceType, unknown_letters
from megatron_hyena.data.atomic import atomic_folder, sha256_of
from megatron_hyena.data.store import (
    CHUNK,
    FORMAT,
    FORMAT_VERSION,
    GenomeStore,
    create_array,
)
from megatron_hyena.data.tracks import check_track_name
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation
from megatron_hyena.formats.fasta import read_pieces
from megatron_hyena.formats.track_files import check_track_file

if TYPE_CHECKING:
    import zarr


def write_store(
    output: Path,
    fasta: Sequence[Path],
    annotation: Sequence[Path] = (),
    *,
    kind: SequenceType = SequenceType.DNA,
    tracks: Mapping[str, Path] = MappingProxyType({}),
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda bases: None,
) -> GenomeStore:
    """Write the store `output` (a folder, it appears whole) and open it.

    `fasta`: one or more FASTA files, whose records are the contigs. `annotation`: GenBank or GFF3
    files, which become `tracks/features`. `kind`: what all the records are made of. `tracks`: name
    → bedGraph or bigWig file, which becomes `tracks/NAME`. `progress` is told the bases of each
    piece. Memory does not grow with the sequence, only with the number of features.

    Raises UserError for every kind of bad input that `read_pieces`, `read_annotation`,
    `label_genome` and `write_track_file` know, for two contigs of one name, and where `output`
    exists already.
    """
    import zarr

    for name, path in tracks.items():
        check_track_name(name)
        check_track_file(path)
    with atomic_folder(output, marker="zarr.json", overwrite=overwrite) as partial:
        records = [record for path in annotation for record in read_annotation(path)]
        group = zarr.create_group(str(partial), zarr_format=3)
        contigs = _write_bases(group, fasta, kind, progress)
        if annotation:
            labels = label_genome(records, contigs.places())
            _write_features(group, labels, contigs.total)
        for name, path in tracks.items():
            write_track_file(group, name, path, contigs.places(), contigs.total)
        group.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "tool_version": __version__,
                "type": kind.name.lower(),
                "contigs": list(contigs.lengths),
                "composition": contigs.composition(),
                "sources": [
                    *(_source(path, "sequence") for path in fasta),
                    *(_source(path, "annotation") for path in annotation),
                    *(_source(path, f"track {name}") for name, path in tracks.items()),
                ],
            }
        )
    return GenomeStore.open(output)


@dataclass
class _Contigs:
    """What is counted while the bases stream by."""

    kind: SequenceType
    lengths: dict[str, int] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    total: int = 0
    gc: int = 0
    unknown: int = 0
    lower: int = 0

    def add(self, path: Path, name: str, start: int, bases: Bases) -> None:
        if start == 0:
            if name in self.lengths:
                raise UserError(
                    f"{path} and {self.files[name]} both have a record named {name!r}; "
                    "rename one of them"
                )
            self.files[name] = path
        self.lengths[name] = start + len(bases)
        self.total += len(bases)
        upper = bases & 0xDF
        self.gc += _count(upper == ord("G")) + _count(upper == ord("C"))
        self.unknown += _count(unknown_letters(self.kind, bases))
        self.lower += _count(bases > ord("Z"))

    def offsets(self) -> list[int]:
        return [0, *np.cumsum(list(self.lengths.values()), dtype=np.int64).tolist()]

    def places(self) -> dict[str, tuple[int, int]]:
        """Name → (start in the concatenated genome, length)."""
        return {
            name: (start, length)
            for (name, length), start in zip(self.lengths.items(), self.offsets(), strict=False)
        }

    def composition(self) -> dict[str, int]:
        """Counts of letters; what a nucleotide is made of says nothing about a protein."""
        gc = {"gc": self.gc} if self.kind.is_nucleic else {}
        unknown = {self.kind.unknown[1]: self.unknown}
        return {"bases": self.total, **gc, **unknown, "lower_case": self.lower}


def _count(truths: Mask) -> int:
    return int(np.count_nonzero(truths))


def _write_bases(
    group: zarr.Group,
    fasta: Sequence[Path],
    kind: SequenceType,
    progress: Callable[[int], object],
) -> _Contigs:
    """Stream the records into `bases` and write `offsets`."""
    contigs = _Contigs(kind)
    array = create_array(group, "bases", "uint8", 0)
    chunk = np.empty(CHUNK, dtype=np.uint8)
    filled = written = 0
    for path in fasta:
        for piece in read_pieces(path, CHUNK, kind):
            contigs.add(path, piece.record, piece.start, piece.bases)
            rest = piece.bases
            while len(rest):
                taken = min(len(rest), CHUNK - filled)
                chunk[filled : filled + taken] = rest[:taken]
                filled, rest = filled + taken, rest[taken:]
                if filled == CHUNK:
                    _append(array, written, chunk)
                    written, filled = written + CHUNK, 0
            progress(len(piece.bases))
    if filled:
        _append(array, written, chunk[:filled])
    offsets = np.array(contigs.offsets(), dtype=np.int64)
    group.create_array("offsets", data=offsets)
    return contigs


def _write_features(group: zarr.Group, labels: LabelledIntervals, total: int) -> None:
    """Write `tracks/features` [total], chunk by chunk."""
    array = create_array(group.require_group("tracks"), "features", "uint8", 0)
    for start in range(0, total, CHUNK):
        _append(array, start, labels.paint(start, min(start + CHUNK, total)))
    array.attrs.update({"kind": "bit flags", "legend": LEGEND, "counts": labels.counts})


def _append(array: zarr.Array[Any], start: int, values: Bases) -> None:
    array.resize((start + len(values),))
    array[start : start + len(values)] = values


def _source(path: Path, role: str) -> dict[str, Any]:
    """Where the bases come from; the file's name, not its folder, so that reruns agree."""
    return {
        "role": role,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }
