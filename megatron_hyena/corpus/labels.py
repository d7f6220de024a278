"""From features to one byte of flags per base: what is labelled, and on which contig."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from megatron_hyena.errors import UserError
from megatron_hyena.formats.features import AnnotatedRecord, Feature, Interval


class Label(IntFlag):
    """What a base belongs to; flags add up where features overlap."""

    CDS_PLUS = 1
    CDS_MINUS = 2
    TRNA = 4
    RRNA = 8
    OTHER_RNA = 16
    GENE = 32
    REPEAT = 64
    EXON = 128


LEGEND: dict[str, str] = {
    "1": "coding sequence on the given strand (or strand not told)",
    "2": "coding sequence on the opposite strand",
    "4": "tRNA",
    "8": "rRNA",
    "16": "other RNA that codes for no protein",
    "32": "gene, the whole extent, on either strand",
    "64": "repeat or mobile element",
    "128": "exon",
}
"""The meaning of each bit, as written beside the track."""

_LABEL_OF_KIND: dict[str, Label] = {
    "CDS": Label.CDS_PLUS,
    "tRNA": Label.TRNA,
    "rRNA": Label.RRNA,
    **dict.fromkeys(
        (
            *("misc_RNA", "ncRNA", "tmRNA", "snRNA", "snoRNA", "scRNA", "miRNA", "lnc_RNA"),
            *("lncRNA", "antisense_RNA", "RNase_P_RNA", "SRP_RNA", "precursor_RNA", "Y_RNA"),
        ),
        Label.OTHER_RNA,
    ),
    **dict.fromkeys(("gene", "ncRNA_gene", "pseudogene"), Label.GENE),
    **dict.fromkeys(
        (
            *("repeat_region", "repeat_unit", "mobile_element", "mobile_genetic_element"),
            *("transposable_element", "tandem_repeat", "inverted_repeat", "direct_repeat"),
            *("LTR", "satellite", "insertion_sequence", "dispersed_repeat"),
        ),
        Label.REPEAT,
    ),
    "exon": Label.EXON,
}


@dataclass(frozen=True)
class LabelledIntervals:
    """Stretches of the concatenated genome and their flags, three arrays of one length.

    `starts`, `ends` int64: half-open, in bases from the first base of the first contig. `flags`
    uint8: the sum of the `Label`s.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    counts: dict[str, int]
    """Features of each type, as the files spell it; types without a label are counted too."""

    def paint(self, start: int, end: int) -> npt.NDArray[np.uint8]:
        """The flags of bases [start, end) of the concatenated genome."""
        track = np.zeros(end - start, dtype=np.uint8)
        inside = np.flatnonzero((self.starts < end) & (self.ends > start))
        for i in inside:
            track[max(0, self.starts[i] - start) : self.ends[i] - start] |= self.flags[i]
        return track


def has_label(kind: str) -> bool:
    """Whether features of this type label bases."""
    return kind in _LABEL_OF_KIND


def label_genome(
    records: Sequence[AnnotatedRecord], contigs: Mapping[str, tuple[int, int]]
) -> LabelledIntervals:
    """Place the features of `records` on `contigs` (name → (start, length) in bases).

    Raises UserError where a record has no contig or another length, or a feature lies outside.
    """
    rows: list[tuple[int, int, int]] = []
    counts: Counter[str] = Counter()
    for record in records:
        name = match_contig(record, contigs, alone=len(records) == 1)
        start, length = contigs[name]
        for feature in record.features:
            counts[feature.kind] += 1
            for interval in _inside(feature, record, name, length):
                flag = _flag(feature.kind, interval.strand)
                if flag:
                    rows.append((start + interval.start, start + interval.end, flag))
        if record.length is not None and record.length != length:
            raise UserError(
                f"{record.path}: record {record.names[0]!r} has {record.length} bases, but the "
                f"FASTA record {name!r} has {length}; give the annotation of this very assembly"
            )
    table = np.array(sorted(rows), dtype=np.int64).reshape(-1, 3)
    return LabelledIntervals(
        starts=table[:, 0].copy(),
        ends=table[:, 1].copy(),
        flags=table[:, 2].astype(np.uint8),
        counts=dict(sorted(counts.items())),
    )


_EXPRESSED = (Label.CDS_PLUS, Label.TRNA, Label.RRNA, Label.OTHER_RNA)
Stretch = tuple[int, int, int]
"""(start, end, strand): half-open, 0-based, strand 1, -1 or 0."""


def coding_stretches(flags: npt.NDArray[np.uint8], start: int) -> list[Stretch]:
    """Stretches of coding sequence in flags of the bases from `start` on, strand by strand."""
    found: list[Stretch] = []
    for label, strand in ((Label.CDS_PLUS, 1), (Label.CDS_MINUS, -1)):
        inside = np.concatenate([[0], (flags & int(label)) > 0, [0]]).astype(np.int8)
        edges = (np.flatnonzero(np.diff(inside)) + start).tolist()
        found += [(a, b, strand) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return found


def gene_features(record: AnnotatedRecord) -> list[tuple[int, int, int, str]]:
    """(start, end, strand, name) of the stretches of the record's genes, by their first base.

    Coding sequence and RNA that no gene covers stand for themselves.
    """
    found: list[tuple[int, int, int, str]] = []
    for labels in ((Label.GENE,), _EXPRESSED):
        known = np.array([gene[:2] for gene in found], dtype=np.int64).reshape(-1, 2)
        found += [
            (*interval, feature.name)
            for feature in record.features
            if _flag(feature.kind, 0) in labels
            for interval in feature.intervals
            if not np.any((known[:, 0] <= interval.start) & (known[:, 1] >= interval.end))
        ]
    return sorted(found)


def match_contig(
    record: AnnotatedRecord, contigs: Mapping[str, tuple[int, int]], *, alone: bool
) -> str:
    """The contig that `record` annotates: of its name, else of its name without the version.

    A single record (`alone`) also matches a single contig of the same length. Raises UserError
    with the names of both sides.
    """
    for name in record.names:
        if name in contigs:
            return name
    bare = {_without_version(name) for name in record.names}
    alike = [name for name in contigs if _without_version(name) in bare]
    if len(alike) == 1:
        return alike[0]
    if alone and len(contigs) == 1:
        name, (_, length) = next(iter(contigs.items()))
        if record.length == length:
            return name
    raise UserError(
        f"{record.path}: the annotated record {_listed(record.names, ' = ')} matches no FASTA "
        f"record ({_listed(tuple(contigs), ', ')}); rename one side so that the names agree"
    )


def _without_version(name: str) -> str:
    stem, dot, version = name.rpartition(".")
    return stem if dot and version.isdigit() else name


def _listed(names: Sequence[str], separator: str, most: int = 8) -> str:
    shown = separator.join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _inside(feature: Feature, record: AnnotatedRecord, name: str, length: int) -> list[Interval]:
    """The intervals within [0, length), those of circular landmarks folded back."""
    folded: list[Interval] = []
    for interval in feature.intervals:
        start, end, strand = interval
        if record.wraps and start < length < end <= 2 * length:
            folded += [Interval(start, length, strand), Interval(0, end - length, strand)]
        elif start >= 0 and end <= length:
            folded.append(interval)
        else:
            label = f"{feature.kind} {feature.name!r}" if feature.name else feature.kind
            raise UserError(
                f"{record.path}: record {name!r}: {label} at {start + 1}..{end} lies outside the "
                f"record, which has {length} bases; correct it or give the matching FASTA"
            )
    return folded


def _flag(kind: str, strand: int) -> Label | None:
    if kind == "CDS" and strand < 0:
        return Label.CDS_MINUS
    return _LABEL_OF_KIND.get(kind)
