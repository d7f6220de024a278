"""What is to be embedded: whole contigs, or the intervals of a BED file, each read by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import read_lines
from megatron_hyena.formats.features import whole_number
from megatron_hyena.formats.reference import Reference

_NO_ROWS = ("#", "track", "browser")


@dataclass(frozen=True)
class Stretch:
    """Bases [start, end) of a contig, 0-based; `reverse` if read from the other strand."""

    name: str
    contig: str
    start: int
    end: int
    reverse: bool = False

    @property
    def length(self) -> int:
        """In bases."""
        return self.end - self.start


def whole_contigs(reference: Reference) -> list[Stretch]:
    """All contigs, in order."""
    return [Stretch(name, name, 0, length) for name, length in reference.lengths.items()]


def bed_stretches(path: Path, reference: Reference) -> list[Stretch]:
    """The rows of a BED file, in order; only their first six columns are read.

    Raises:
        UserError: a row that cannot be read, is of no contig of the reference, or lies outside of
            it; no rows.
    """
    found = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip() and not line.startswith(_NO_ROWS):
            found.append(_stretch(path, number, line, reference))
    if not found:
        raise UserError(f"{path} holds no BED rows; give another file or leave --bed out")
    return found


def _stretch(path: Path, number: int, line: str, reference: Reference) -> Stretch:
    columns = line.split("\t") if "\t" in line else line.split()
    start, end = ([*map(whole_number, columns[1:3]), None, None])[:2]
    if start is None or end is None or end <= start:
        raise UserError(
            f"{path}: line {number} is no BED row (contig, start, and an end behind it); correct "
            "or remove it"
        )
    contig, length = columns[0], reference.lengths.get(columns[0])
    if length is None:
        raise UserError(f"{path}: line {number}: {reference.unknown(contig)}")
    if end > length:
        raise UserError(
            f"{path}: line {number} ends at {end}, but {contig} of {reference.path} has {length} "
            "bases; correct it, or give the assembly that it was made for"
        )
    name = columns[3] if len(columns) > 3 else f"{contig}:{start}-{end}"
    return Stretch(name, contig, start, end, len(columns) > 5 and columns[5].strip() == "-")
