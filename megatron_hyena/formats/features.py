"""What an annotation says, whatever its format: features with their type, place, strand, name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


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


_DIGITS = 15


def whole_number(text: str) -> int | None:
    """The number that `text` writes with the digits 0 to 9, at most 15 of them, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
