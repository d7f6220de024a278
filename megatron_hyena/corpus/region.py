"""A stretch of one sequence, as `contig:start-end`: its bases, and what is known of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.corpus.labels import coding_stretches, gene_features, label_genome, match_contig
from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation
from megatron_hyena.formats.sequences import read_sequences


@dataclass(frozen=True)
class Region:
    """Bases [start, end) of `contig`, 0-based."""

    contig: str
    start: int
    end: int

    def __str__(self) -> str:
        """As `parse_region` reads it: 1-based, both ends included."""
        return f"{self.contig}:{self.start + 1}-{self.end}"

    @property
    def length(self) -> int:
        """In bases."""
        return self.end - self.start


_SPAN = re.compile(r"([\d,]*\d)(?:-([\d,]*\d)?)?")


def parse_region(text: str | None, lengths: Mapping[str, int], source: Path) -> Region:
    """Read a region as samtools does: `contig`, `contig:start`, `contig:start-end`.

    Positions are 1-based, both ends included, commas in numbers allowed; what is left out reaches
    to the end. A text that is itself a name is that whole contig, colons or not. None is the only
    contig.

    Args:
        text: the region.
        lengths: contig → bases.
        source: named in messages.
    Raises:
        UserError: no such contig, positions that cannot be read, or that lie outside of it.
    """
    if text is None:
        if len(lengths) > 1:
            raise UserError(
                f"{source} has {len(lengths)} contigs; choose one with --region, such as "
                f"{next(iter(lengths))}:1-2000"
            )
        text = next(iter(lengths))
    if text in lengths:
        return Region(text, 0, lengths[text])
    contig, colon, span = text.rpartition(":")
    if not colon or contig not in lengths:
        known = ", ".join(list(lengths)[:8]) + (", …" if len(lengths) > 8 else "")
        raise UserError(
            f"{source} has no contig {contig if colon else text!r} (it has {known}); correct "
            "--region"
        )
    found = _SPAN.fullmatch(span)
    if found is None:
        raise UserError(
            f"--region {text!r}: {span!r} is no stretch; write {contig}:start-end, from 1 on"
        )
    start, end = (int(n.replace(",", "")) if n else None for n in found.groups())
    assert start is not None
    last = lengths[contig] if end is None else end
    if last > lengths[contig] or start > lengths[contig]:
        raise UserError(
            f"--region {text!r} reaches base {max(start, last):,}, but {contig} in {source} has "
            f"{lengths[contig]:,}; ask for less"
        )
    if start < 1 or last < start:
        raise UserError(
            f"--region {text!r} runs from {start} to {last}; bases count from 1, and the end does "
            "not come before the start"
        )
    return Region(contig, start - 1, last)


@dataclass(frozen=True)
class RegionSource:
    """Where bases come from.

    Attributes:
        path: of the file or store.
        kind: what they are.
        lengths: contig → bases, in order.
        open: contig → a function (start, end) → bases uint8 [end - start].
        store: the genome store, unless it is a FASTA file.
    """

    path: Path
    kind: SequenceType
    lengths: dict[str, int]
    open: Callable[[str], Callable[[int, int], Bases]]
    store: GenomeStore | None = None


def store_source(path: Path) -> RegionSource:
    """A genome store; raises UserError where it is none."""
    store = GenomeStore.open(path)
    lengths = {contig.name: contig.length for contig in store.contigs}

    def open_contig(name: str) -> Callable[[int, int], Bases]:
        return lambda start, end: store.read(name, start, end)

    return RegionSource(path, store.type, lengths, open_contig, store)


def fasta_source(path: Path, kind: SequenceType) -> RegionSource:
    """A sequence file, read once for the lengths and once for a contig."""
    lengths: dict[str, int] = {}
    for piece in read_sequences(path, kind=kind):
        lengths[piece.record] = piece.start + len(piece.bases)

    def open_contig(name: str) -> Callable[[int, int], Bases]:
        pieces = [p.bases for p in read_sequences(path, kind=kind) if p.record == name]
        bases = np.concatenate(pieces)
        return lambda start, end: bases[start:end]

    return RegionSource(path, kind, lengths, open_contig)


@dataclass(frozen=True, eq=False)
class RegionAnnotation:
    """What is known of a region's bases.

    Attributes:
        flags: `Label`s of each base, uint8 [n].
        genes: (start, end, strand, name) of genes that reach into it, 0-based, half-open.
    """

    flags: npt.NDArray[np.uint8]
    genes: list[tuple[int, int, int, str]]


def region_annotation(
    source: RegionSource, region: Region, path: Path | None
) -> RegionAnnotation | None:
    """From the annotation file `path`, else from the store; None where neither tells.

    A store keeps no genes, so its stretches of coding sequence stand for them, without names.
    Raises UserError as `read_annotation` and `label_genome` do.
    """
    if path is not None:
        return _annotation_of_file(source, region, path)
    if source.store is None or "features" not in source.store.tracks:
        return None
    # A base more on both sides, so that a stretch which goes on out there is seen to do so.
    first, last = max(0, region.start - 1), min(region.end + 1, source.lengths[region.contig])
    flags = source.store.track("features").read(region.contig, first, last)
    genes = [(*stretch, "") for stretch in coding_stretches(flags, first)]
    inside = flags[region.start - first : region.end - first]
    return RegionAnnotation(inside, [g for g in genes if g[0] < region.end and g[1] > region.start])


def _annotation_of_file(source: RegionSource, region: Region, path: Path) -> RegionAnnotation:
    records, places, total = read_annotation(path), dict[str, tuple[int, int]](), 0
    for name, length in source.lengths.items():
        places[name], total = (total, length), total + length
    first = places[region.contig][0]
    flags = label_genome(records, places).paint(first + region.start, first + region.end)
    alone = len(records) == 1
    genes = [
        gene
        for record in records
        if match_contig(record, places, alone=alone) == region.contig
        for gene in gene_features(record)
        if gene[0] < region.end and gene[1] > region.start
    ]
    return RegionAnnotation(flags, genes)
