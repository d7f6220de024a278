"""Write a genome store from sequence, annotation and track files, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megatron_hyena import __version__
from megatron_hyena.corpus.appender import Appender
from megatron_hyena.corpus.labels import LEGEND, LabelledIntervals, label_genome
from megatron_hyena.corpus.sources import CONSERVATION, Sources, find_sources
from megatron_hyena.corpus.store_sums import STORE_FILE, seal_store
from megatron_hyena.corpus.tracks import write_track_files
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.atomic import atomic_folder, check_replaceable
from megatron_hyena.data.letters_frame import letters_frame
from megatron_hyena.data.store import (
    CHUNK,
    FORMAT,
    FORMAT_VERSION,
    GenomeStore,
    create_array,
)
from megatron_hyena.errors import UserError
from megatron_hyena.formats.maf import project_maf
from megatron_hyena.formats.pieces import BLOCK, Piece
from megatron_hyena.formats.sequences import read_sequences

if TYPE_CHECKING:
    import zarr


def write_store(
    output: Path,
    fasta: Sequence[str | Path],
    annotation: Sequence[str | Path] = (),
    *,
    kind: SequenceType = SequenceType.DNA,
    tracks: Mapping[str, str | Path] = MappingProxyType({}),
    maf_reference: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda bases: None,
) -> GenomeStore:
    """Write the store `output` (a folder, it appears whole) and open it.

    `fasta`: one or more sequence files (FASTA, 2bit, GenBank, EMBL, MAF), whose records are the
    contigs; the features of GenBank and EMBL files count, too. `annotation`: GenBank, EMBL, GFF3,
    GTF or BED files (these also as `TYPE=FILE`), which become `tracks/features`. `kind`: what all
    the records are made of. `tracks`: name → bedGraph or bigWig file, which becomes `tracks/NAME`.
    `maf_reference`: see `project_maf`; an alignment also becomes `tracks/conservation`. Each name
    may be a file's, a folder's or a glob. `progress` is told the bases of each piece. Memory does
    not grow with the sequence, only with the number of features.

    Raises UserError for every kind of bad input that `find_sources`, `read_sequences`,
    `project_maf`, `read_annotation`, `label_genome` and `write_track_files` know, for two contigs
    of one name, and where `output` exists already.
    """
    import zarr

    check_replaceable(output, marker=STORE_FILE, overwrite=overwrite)
    sources = find_sources(fasta, annotation, tracks, maf_reference)
    with atomic_folder(output, marker=STORE_FILE, overwrite=overwrite) as partial:
        records = sources.annotated()
        group = zarr.create_group(str(partial), zarr_format=3)
        contigs = _write_bases(group, sources, kind, partial, progress)
        if records or annotation:
            labels = label_genome(records, contigs.places())
            _write_features(group, labels, contigs.total)
        for name, paths in sources.tracks.items():
            write_track_files(group, name, paths, contigs.places(), contigs.total)
        group.attrs.update(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "tool_version": __version__,
                "type": kind.name.lower(),
                "contigs": list(contigs.lengths),
                "composition": contigs.composition(),
                "sources": sources.described(),
            }
        )
        seal_store(partial)
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

    def add(self, path: Path, piece: Piece) -> None:
        """Count a piece; raises UserError for the name of an earlier contig."""
        name = piece.record
        if piece.start == 0:
            if name in self.lengths:
                raise UserError(
                    f"{path} and {self.files[name]} both have a record named {name!r}; "
                    "rename one of them"
                )
            self.files[name] = path
        self.lengths[name] = piece.start + len(piece.bases)
        self.total += len(piece.bases)
        self.gc += piece.tally.gc
        self.unknown += piece.tally.unknown
        self.lower += piece.tally.lower

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


@dataclass
class _Conservation:
    """The identity of the columns of alignments, beside the bases; NaN where nothing is known."""

    values: Appender
    known: int = 0
    least: float = np.inf
    greatest: float = -np.inf

    def add(self, identity: npt.NDArray[np.float32]) -> None:
        """Append the numbers of the next bases."""
        self.values.add(identity)
        told = identity[~np.isnan(identity)]
        if len(told):
            self.known += len(told)
            self.least = min(self.least, float(told.min()))
            self.greatest = max(self.greatest, float(told.max()))

    def describe(self) -> None:
        """Sum it up in the attributes, as those of other tracks of numbers."""
        if self.known == 0:
            raise UserError(
                "the alignment has no row beside the reference's, so nothing is known of its "
                "conservation; give one of several genomes, or FASTA"
            )
        self.values.array.attrs.update(
            {
                "kind": "numbers, NaN where unknown",
                "known": self.known,
                "least": self.least,
                "greatest": self.greatest,
            }
        )


def _write_bases(
    group: zarr.Group,
    sources: Sources,
    kind: SequenceType,
    scratch: Path,
    progress: Callable[[int], object],
) -> _Contigs:
    """Stream the records into `bases`, alignments into `tracks/conservation`; write `offsets`."""
    contigs, conservation = _Contigs(kind), None
    with ExitStack() as stack:
        array = create_array(group, "bases", "uint8", 0)
        bases = stack.enter_context(Appender(array, letters_frame))
        if sources.has_alignment:
            array = create_array(group.require_group("tracks"), CONSERVATION, "float32", 0)
            conservation = _Conservation(stack.enter_context(Appender(array)))
        for path, found in sources.sequences.items():
            pieces = (
                _aligned_pieces(sources, path, kind, scratch, conservation)
                if found == "maf" and conservation
                else read_sequences(path, BLOCK, kind, sources.checksum(path))
            )
            for piece in pieces:
                contigs.add(path, piece)
                bases.add(piece.bases)
                if conservation and found != "maf":
                    conservation.add(np.full(len(piece.bases), np.nan, dtype=np.float32))
                progress(len(piece.bases))
    if conservation:
        conservation.describe()
    group.create_array("offsets", data=np.array(contigs.offsets(), dtype=np.int64))
    return contigs


def _aligned_pieces(
    sources: Sources, path: Path, kind: SequenceType, scratch: Path, conservation: _Conservation
) -> Iterator[Piece]:
    """The reference of an alignment; behind its last piece its conservation is added."""
    projection = project_maf(path, scratch, sources.maf_reference, sources.checksum(path))
    sources.references[path] = projection.reference
    try:
        yield from projection.pieces(BLOCK, kind)
        for identity in projection.identities():
            conservation.add(identity)
    finally:
        projection.close()


def _write_features(group: zarr.Group, labels: LabelledIntervals, total: int) -> None:
    """Write `tracks/features` [total], chunk by chunk."""
    array = create_array(group.require_group("tracks"), "features", "uint8", 0)
    with Appender(array) as features:
        for start in range(0, total, CHUNK):
            features.add(labels.paint(start, min(start + CHUNK, total)))
    array.attrs.update({"kind": "bit flags", "legend": LEGEND, "counts": labels.counts})
