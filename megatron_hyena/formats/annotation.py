"""Features of a genome from GenBank or GFF3 files, plain or gzip.

Formats: the INSDC feature table definition (section 3.4, locations) and the GFF3 specification
1.26; GTF rows read the same way. Only what labels bases is kept: type, place, strand, a name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import read_lines


class Interval(NamedTuple):
    """Bases [start, end), 0-based, on strand +1, -1 or 0 (not given)."""

    start: int
    end: int
    strand: int


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: its type, as the file spells it, a name for messages, and its stretches."""

    kind: str
    name: str
    intervals: tuple[Interval, ...]
    """In the order written; parts on other records and sites between two bases are left out."""

    @property
    def strand(self) -> int:
        """+1 or -1 where all intervals agree, else 0."""
        strands = {interval.strand for interval in self.intervals}
        return strands.pop() if len(strands) == 1 else 0


@dataclass(frozen=True)
class AnnotatedRecord:
    """The features of one sequence."""

    path: Path
    names: tuple[str, ...]
    """What the sequence may be called elsewhere: locus, accession, accession.version."""
    length: int | None
    """In bases, where the file tells."""
    wraps: bool
    """Coordinates past the end continue at the start (GFF3's circular landmarks)."""
    features: tuple[Feature, ...]


def read_annotation(path: Path) -> list[AnnotatedRecord]:
    """Read every record of a GenBank or GFF3 file, told apart by content.

    Raises UserError for a file that is missing, empty, truncated or of another format, and for a
    location or a row that cannot be read.
    """
    lines = read_lines(path)
    first = next((line for line in lines if line.strip()), "")
    if first.startswith("LOCUS "):
        return list(_genbank_records(path, chain([first], lines)))
    if first.startswith("#") or first.count("\t") >= 7:
        return _gff_records(path, chain([first], lines))
    raise UserError(
        f"{path} is neither GenBank nor GFF3: it begins with {first[:20]!r}; "
        "give one of the two, plain or gzip"
    )


# GenBank -----------------------------------------------------------------------------------------

_FEATURE_KEY = re.compile(r" {5}(\S+) +(\S.*)")
_FEATURE_NAME = re.compile(r'\s+/(?:gene|locus_tag|standard_name)="?([^"]+)')


def _genbank_records(path: Path, lines: Iterator[str]) -> Iterator[AnnotatedRecord]:
    for line in lines:
        if line.startswith("LOCUS "):
            yield _genbank_record(path, line, lines)
        elif line.strip():
            raise UserError(f"{path}: {line[:20]!r} stands where a LOCUS line belongs; correct it")


def _genbank_record(path: Path, locus: str, lines: Iterator[str]) -> AnnotatedRecord:
    """Read on from the LOCUS line to the `//` that ends the record."""
    words = locus.split()
    names = words[1:2]
    features: list[Feature] = []
    for line in lines:
        if line.startswith("//"):
            break
        if line.startswith(("ACCESSION ", "VERSION ")):
            names += line.split()[1:2]
        elif line.startswith("FEATURES "):
            features, ended = _feature_table(path, names[0], lines)
            if ended:
                break
    else:
        raise UserError(
            f"{path}: record {names[0] if names else ''!r} has no '//' line at its end; "
            "the file is cut short: fetch it again"
        )
    size = re.search(r"\s(\d+) (?:bp|rc)\s", locus)
    return AnnotatedRecord(
        path=path,
        names=tuple(dict.fromkeys(names)),
        length=int(size[1]) if size else None,
        wraps=False,
        features=tuple(features),
    )


def _feature_table(path: Path, record: str, lines: Iterator[str]) -> tuple[list[Feature], bool]:
    """The features up to the next section, and whether that section is the record's end."""
    features: list[Feature] = []
    kind, location, name, in_location = "", "", "", False

    def close() -> None:
        if kind:
            features.append(_genbank_feature(path, record, kind, location, name))

    for line in filter(str.strip, lines):
        if not line.startswith(" "):
            close()
            return features, line.startswith("//")
        if key := _FEATURE_KEY.match(line):
            close()
            kind, location, name, in_location = sys.intern(key[1]), key[2], "", True
        elif line.lstrip().startswith("/"):
            in_location = False
            if not name and (found := _FEATURE_NAME.match(line)):
                name = found[1]
        elif in_location:
            location += line
    raise UserError(f"{path}: record {record!r} ends inside its features; fetch the file again")


def _genbank_feature(path: Path, record: str, kind: str, location: str, name: str) -> Feature:
    try:
        intervals = tuple(parse_location(location))
    except ValueError as error:
        raise UserError(f"{path}: record {record!r}: {kind} {name!r}: {error}") from error
    return Feature(kind, name, intervals)


_POSITION = r"[<>]?(?:(\d+)|\((\d+)\.(\d+)\))"
_SPAN = re.compile(rf"{_POSITION}(?:\.\.{_POSITION})?")
_BETWEEN = re.compile(r"\d+\^\d+")
_NESTED = re.compile(r"(join|order|complement)\((.*)\)")


def parse_location(text: str) -> list[Interval]:
    """Read a location such as `complement(join(<1..5,8..>9))`; raises ValueError.

    `<` and `>` (the feature goes on beyond) are dropped, of `(3.5)` the outermost base is taken.
    """
    text = "".join(text.split())
    if nested := _NESTED.fullmatch(text):
        operator, inner = nested.groups()
        intervals = [i for part in _split_at_commas(inner) for i in parse_location(part)]
        if operator == "complement":
            return [interval._replace(strand=-interval.strand) for interval in intervals]
        return intervals
    if ":" in text or _BETWEEN.fullmatch(text):
        return []
    span = _SPAN.fullmatch(text)
    if span is None:
        raise ValueError(f"the location {text!r} cannot be read; correct it")
    one, low, _, other, _, high = span.groups()
    start = int(one or low)
    end = int(other or high or one or span[3])
    if end < start:
        raise ValueError(f"the location {text!r} ends before it starts; correct it")
    return [Interval(start - 1, end, 1)]


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas that stand outside all brackets."""
    parts, depth, begin = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[begin:index])
            begin = index + 1
    return [*parts, text[begin:]]


# GFF3 --------------------------------------------------------------------------------------------

_STRANDS = {"+": 1, "-": -1, ".": 0, "?": 0}
_GFF_NAME = re.compile(r"(?:^|;)\s*(?:ID|Name|gene_id|transcript_id)[ =]\"?([^;\"]+)")


def _gff_records(path: Path, lines: Iterator[str]) -> list[AnnotatedRecord]:
    features: dict[str, list[Feature]] = {}
    lengths: dict[str, int] = {}
    circular: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if line.startswith("##FASTA"):
            break
        if line.startswith("##sequence-region"):
            words = line.split()
            if len(words) == 4 and words[2] == "1" and words[3].isdigit():
                lengths[unquote(words[1])] = int(words[3])
        elif line.strip() and not line.startswith("#"):
            record, feature, attributes = _gff_row(path, number, line)
            features.setdefault(record, []).append(feature)
            if "Is_circular=true" in attributes:
                circular.add(record)
    if not features:
        raise UserError(f"{path} holds no GFF3 feature rows; give another file or leave it out")
    return [
        AnnotatedRecord(path, (name,), lengths.get(name), name in circular, tuple(found))
        for name, found in features.items()
    ]


def _gff_row(path: Path, number: int, line: str) -> tuple[str, Feature, str]:
    """The record's name, the feature, and the ninth column of one row."""
    columns = line.split("\t")
    if len(columns) not in (8, 9) or not (columns[3].isdigit() and columns[4].isdigit()):
        raise UserError(
            f"{path}: row {number} is no GFF3 row (nine columns set apart by tabs, the fourth and "
            "fifth whole numbers); correct or remove it"
        )
    attributes = columns[8] if len(columns) == 9 else ""
    start, end = int(columns[3]), int(columns[4])
    found = _GFF_NAME.search(attributes)
    name = unquote(found[1]) if found else ""
    if end < start:
        raise UserError(
            f"{path}: row {number}: {columns[2]} {name!r} ends before it starts; correct it"
        )
    interval = Interval(start - 1, end, _STRANDS.get(columns[6], 0))
    return unquote(columns[0]), Feature(sys.intern(columns[2]), name, (interval,)), attributes
