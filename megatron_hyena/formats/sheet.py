"""The sample sheet: a table of genomes, one a line, with what a corpus has to know of each.

Columns are set apart by tabs and named in the first line, in any order:

    path        the sequences: a file, a folder or a glob; the one column that must be there
    name        of the sample, once in the sheet; by default the file's, without its endings
    taxon       any word; samples of one taxon may be kept together or left out
    type        dna (default), rna, protein or mixed
    split       train, valid or test; empty: the corpus decides
    weight      a number above 0, how often training draws its bases relative to others; default 1
    annotation  files, parted by commas; of BED files without blocks TYPE=FILE
    tracks      NAME=FILE, parted by commas

Empty cells take the default. Lines that are empty or begin with `#` are passed by. Relative paths
begin at the sheet's own folder; what has a scheme (`s3://…`) stays a string.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import read_lines
from megatron_hyena.formats.locate import without_endings

Location = Path | str
"""A local path, or the text of a URL."""

COLUMNS = ("path", "name", "taxon", "type", "split", "weight", "annotation", "tracks")
SPLITS = ("train", "valid", "test")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class SampleRow:
    """One line of the sheet."""

    name: str
    """Letters, digits and `._+-`: it names files and begins the names of contigs."""
    path: Location
    taxon: str = ""
    type: SequenceType = SequenceType.DNA
    split: str = ""
    """`train`, `valid`, `test`, or empty where the corpus decides."""
    weight: float = 1.0
    """Finite and above 0."""
    annotation: tuple[Location, ...] = ()
    tracks: dict[str, Location] = field(default_factory=dict, hash=False)


def read_sheet(path: Path) -> list[SampleRow]:
    """Read a sample sheet, plain or gzip.

    Raises UserError, with the line and the column, for an unknown or missing column, a cell that
    cannot be read, and two samples of one name. Whether the files exist is not looked at.
    """
    columns: list[str] = []
    rows: list[SampleRow] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if not columns:
            columns = _checked_columns(path, number, cells)
            continue
        row = _read_row(path, number, columns, cells)
        if row.name in lines_of:
            raise UserError(
                f"{path}: line {number}, column 'name': the sample {row.name!r} is in line "
                f"{lines_of[row.name]} already; give one of them another name"
            )
        lines_of[row.name] = number
        rows.append(row)
    if not rows:
        raise UserError(f"{path} lists no samples; add a line for each below the column names")
    return rows


def _checked_columns(path: Path, number: int, cells: list[str]) -> list[str]:
    unknown = [cell for cell in cells if cell not in COLUMNS]
    if unknown:
        raise UserError(
            f"{path}: line {number}: {unknown[0]!r} is no column of a sample sheet; the first line "
            f"names columns out of {', '.join(COLUMNS)}, set apart by tabs"
        )
    twice = [cell for cell in cells if cells.count(cell) > 1]
    if twice:
        raise UserError(f"{path}: line {number}: column {twice[0]!r} stands twice; keep one")
    if "path" not in cells:
        raise UserError(f"{path}: line {number}: the column 'path' is missing; add it")
    return cells


def _read_row(path: Path, number: int, columns: list[str], cells: list[str]) -> SampleRow:
    if len(cells) != len(columns):
        raise UserError(
            f"{path}: line {number} has {len(cells)} cells, but there are {len(columns)} columns; "
            "set cells apart by one tab each, empty ones too"
        )
    row = dict(zip(columns, cells, strict=True))
    found: dict[str, Any] = {}
    for column, read in _READERS.items():
        try:
            found[column] = read(path.parent, row.get(column, ""))
        except ValueError as error:
            raise UserError(f"{path}: line {number}, column {column!r}: {error}") from error
    name = row.get("name", "") or _default_name(row["path"])
    if not row.get("name", "") and set(row["path"]) & set("*?["):
        raise UserError(
            f"{path}: line {number}: {row['path']} is a glob, whose files make one sample; "
            "give it a name in a column 'name', or each file a line of its own"
        )
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{path}: line {number}, column 'name': {name!r} is no name of a sample; use letters, "
            "digits and . _ + - only, the first no dot"
        )
    return SampleRow(name=name, taxon=row.get("taxon", ""), **found)


def _default_name(text: str) -> str:
    """The last part of a path without the endings of sequence files."""
    return without_endings(text.rstrip("/").rpartition("/")[2])


# One reader for each column: (folder of the sheet, cell) -> value, or ValueError that says the fix.


def _location(folder: Path, cell: str) -> Location:
    if not cell:
        raise ValueError("it is empty; name the file with the sequences")
    return cell if "://" in cell else folder / cell


def _type(folder: Path, cell: str) -> SequenceType:
    return SequenceType.named(cell.lower() or "dna")


def _split(folder: Path, cell: str) -> str:
    if cell and cell not in SPLITS:
        raise ValueError(f"{cell!r} is no split; use {', '.join(SPLITS)} or leave it empty")
    return cell


def _weight(folder: Path, cell: str) -> float:
    try:
        weight = float(cell or 1)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"{cell!r} is no finite number above 0; give one or leave it empty")
    return weight


def _files(folder: Path, cell: str) -> tuple[Location, ...]:
    return tuple(_typed(folder, part.strip()) for part in cell.split(",") if cell)


def _typed(folder: Path, part: str) -> Location:
    """A file, or TYPE=FILE as text."""
    kind, equals, file = part.rpartition("=")
    if equals and kind.isidentifier():
        return f"{kind}={_location(folder, file)}"
    return _location(folder, part)


def _tracks(folder: Path, cell: str) -> dict[str, Location]:
    tracks: dict[str, Location] = {}
    for part in cell.split(",") if cell else ():
        name, equals, file = (word.strip() for word in part.partition("="))
        if not (name and equals and file):
            raise ValueError(f"{part.strip()!r} names no track and its file; write NAME=FILE")
        if name in tracks:
            raise ValueError(f"the track {name!r} stands twice; keep one")
        tracks[name] = _location(folder, file)
    return tracks


_READERS = {
    "path": _location,
    "type": _type,
    "split": _split,
    "weight": _weight,
    "annotation": _files,
    "tracks": _tracks,
}
