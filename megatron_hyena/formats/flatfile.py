"""GenBank and EMBL flat files: their features, and their sequences.

Both hold the INSDC feature table; EMBL sets a two-letter code before each line. The sequences'
lower case is the formats' habit and masks nothing: they are read as upper case.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import Digest, read_lines
from megatron_hyena.formats.features import AnnotatedRecord, Feature
from megatron_hyena.formats.location import parse_location
from megatron_hyena.formats.pieces import BLOCK, Piece, Records

_FEATURE_KEY = re.compile(r" {5}(\S+) +(\S.*)")
_FEATURE_NAME = re.compile(r'\s+/(?:gene|locus_tag|standard_name)="?([^"]+)')
_GENBANK_SIZE = re.compile(r"\s([0-9]{1,15}) (?:bp|rc|aa)(?:\s|$)")
_EMBL_SIZE = re.compile(r"\s([0-9]{1,15}) (?:BP|AA)\.")
_EMBL_VERSION = re.compile(r";\s*SV\s+([0-9]+)\s*;")
_NUMBERED = b"0123456789 \t\r"
_LINES_AT_ONCE = 1 << 13


@dataclass
class _Entry:
    """One record as far as it has been read."""

    path: Path
    names: list[str] = field(default_factory=list)
    version: str = ""
    """accession.version, the name that the databases' FASTA files use."""
    length: int | None = None
    table: list[tuple[int, str]] = field(default_factory=list)
    """Numbered lines of the feature table, in GenBank's columns."""
    in_table: bool = False
    sequence: list[str] = field(default_factory=list)
    """Lines of it that nobody has taken yet."""
    in_sequence: bool = False

    @property
    def name(self) -> str:
        """accession.version, else the accession, else the first name."""
        return self.version or (self.names[1] if len(self.names) > 1 else self.names[0])

    def annotated(self) -> AnnotatedRecord:
        """The features, in the form that all formats share."""
        names = tuple(dict.fromkeys(filter(None, [*self.names, self.version])))
        return AnnotatedRecord(self.path, names, self.length, False, tuple(_features(self)))


def is_flat_file(line: str | bytes) -> bool:
    """Whether a file that begins with this line is GenBank or EMBL."""
    text = line.decode("latin-1") if isinstance(line, bytes) else line
    return text.startswith(("LOCUS ", "ID   "))


def flat_file_records(path: Path, lines: Iterable[tuple[int, str]]) -> list[AnnotatedRecord]:
    """The features of each record. `lines`: (number, text); errors as `read_flat_file`."""
    return [entry.annotated() for entry, rest in _entries(path, lines) if rest is None]


def read_flat_file(
    path: Path,
    block_bytes: int = BLOCK,
    kind: SequenceType = SequenceType.DNA,
    digest: Digest | None = None,
) -> Iterator[Piece]:
    """Yield the sequences of a GenBank or EMBL file, plain or gzip, in order and in pieces.

    A record is named by accession and version, as in the databases' FASTA files, else by its
    accession, else by its locus. Raises UserError as `read_pieces` of FASTA files, for a line that
    does not belong, and where a record has no sequence or another length than it says.
    """
    records, current = Records(path, kind), None
    for entry, lines in _entries(path, enumerate(read_lines(path, digest=digest), start=1)):
        if entry is not current:
            records.begin(entry.name)
            current = entry
        if lines is None:
            _check_length(path, entry, records.length)
            continue
        text = "".join(lines).encode("latin-1", "replace").translate(None, _NUMBERED).upper()
        for start in range(0, len(text), block_bytes):
            block = text[start : start + block_bytes]
            yield records.piece(np.frombuffer(block, dtype=np.uint8))
    records.finish()


def _check_length(path: Path, entry: _Entry, length: int) -> None:
    if length == 0:
        raise UserError(
            f"{path}: record {entry.name!r} holds no sequence; fetch the full record, or give its "
            "FASTA file"
        )
    if entry.length not in (None, length):
        raise UserError(
            f"{path}: record {entry.name!r} says that it has {entry.length} bases, but {length} "
            "follow; correct it or fetch the file again"
        )


def _entries(
    path: Path, numbered: Iterable[tuple[int, str]]
) -> Iterator[tuple[_Entry, list[str] | None]]:
    """Yield (record, lines) for more and more of its sequence and (record, None) at its end."""
    entry: _Entry | None = None
    for number, line in numbered:
        if entry is None:
            if line.strip():
                entry = _begun(path, number, line)
        elif line.startswith("//"):
            yield entry, entry.sequence
            yield entry, None
            entry = None
        elif entry.in_sequence:
            entry.sequence.append(line)
            if len(entry.sequence) == _LINES_AT_ONCE:
                yield entry, entry.sequence
                entry.sequence = []
        elif line.startswith(("ORIGIN", "SQ   ")):
            entry.in_sequence = True
        else:
            _read_head(entry, number, line)
    if entry is not None:
        raise UserError(
            f"{path}: record {entry.names[0]!r} has no '//' line at its end; "
            "the file is cut short: fetch it again"
        )


def _begun(path: Path, number: int, line: str) -> _Entry:
    """The record that a LOCUS or ID line begins."""
    words = line.replace(";", " ").split()
    if not is_flat_file(line) or len(words) < 2:
        raise UserError(
            f"{path}: line {number}: {line[:20]!r} stands where a LOCUS or ID line with a name "
            "belongs; correct it"
        )
    entry = _Entry(path, [words[1]])
    size = (_GENBANK_SIZE if words[0] == "LOCUS" else _EMBL_SIZE).search(line)
    entry.length = int(size[1]) if size else None
    if words[0] == "ID" and (version := _EMBL_VERSION.search(line)):
        entry.version = f"{words[1]}.{version[1]}"
    return entry


def _read_head(entry: _Entry, number: int, line: str) -> None:
    """Take what a line before the sequence tells: other names, or a row of the feature table."""
    words = line.replace(";", " ").split()
    if line.startswith(("FEATURES ", "FH ")):
        entry.in_table = line.startswith("FEATURES ")
    elif line.startswith("FT   "):
        entry.table.append((number, f"     {line[5:]}"))
    elif entry.in_table and line.startswith(" "):
        entry.table.append((number, line))
    elif words:
        entry.in_table = False
        if words[0] in ("ACCESSION", "AC"):
            entry.names += words[1:2]
        elif words[0] in ("VERSION", "SV"):
            entry.version = words[1] if len(words) > 1 else ""


def _features(entry: _Entry) -> Iterator[Feature]:
    """The features of a table in GenBank's columns."""
    kind, location, name, begun, in_location = "", "", "", 0, False
    for number, line in [*entry.table, (0, "     . .")]:
        if key := _FEATURE_KEY.match(line):
            if kind:
                yield _feature(entry, begun, kind, location, name)
            kind, location, name, in_location = sys.intern(key[1]), key[2], "", True
            begun = number
        elif line.lstrip().startswith("/"):
            in_location = False
            if not name and (found := _FEATURE_NAME.match(line)):
                name = found[1]
        elif in_location:
            location += line


def _feature(entry: _Entry, number: int, kind: str, location: str, name: str) -> Feature:
    try:
        intervals = tuple(parse_location(location))
    except ValueError as error:
        raise UserError(
            f"{entry.path}: line {number}: record {entry.names[0]!r}: {kind} {name!r}: {error}"
        ) from error
    return Feature(kind, name, intervals)
