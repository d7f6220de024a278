"""Sequences as they stream by: pieces of records, their letters checked and counted on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_hyena.data.alphabet import AMINO_ACIDS, Bases, SequenceType
from megatron_hyena.errors import UserError

BLOCK = 1 << 19
"""Bytes that readers take at once: few enough for the processor's cache, many enough for numpy."""

_UPPER = np.uint8(0xDF)
_C_AS_G = np.uint8(ord("C") ^ ord("G"))
_FIRST_LOWER = ord("Z") + 1


@dataclass(frozen=True, slots=True)
class Tally:
    """Letters of a stretch: G and C, unknown ones of the sequence's type, and lower case ones."""

    gc: int
    unknown: int
    lower: int


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch of one record: `bases` uint8 [n] from position `start` (0-based) on."""

    record: str
    start: int
    bases: Bases
    tally: Tally


def tally(bases: Bases, kind: SequenceType) -> Tally | None:
    """Count the letters of `bases` uint8 [n]; None where a byte is no letter of `kind`."""
    if kind.is_nucleic and len(bases) > 512 and (found := _tally_plain(bases)) is not None:
        return found
    histogram = np.bincount(bases, minlength=256)
    letters = np.frombuffer(kind.letters.encode("ascii"), dtype=np.uint8)
    if histogram[letters].sum() != len(bases):
        return None
    gc, unknown = (
        sum(int(histogram[ord(letter)]) for letter in some) for some in ("GCgc", kind.unknown)
    )
    return Tally(gc, unknown, int(histogram[_FIRST_LOWER:].sum()))


def _tally_plain(bases: Bases) -> Tally | None:
    """The tally of sequence that is ACGTN alone, as most is, at a quarter of the cost; or None."""
    found, mixed = np.empty(len(bases), dtype=np.bool_), bases.max() >= _FIRST_LOWER
    upper = bases & _UPPER if mixed else bases

    def count(values: Bases, letter: str) -> int:
        return int(np.count_nonzero(np.equal(values, ord(letter), out=found)))

    known = count(upper, "A") + count(upper, "T")
    gc = count(upper | _C_AS_G, "G")  # C becomes G, and nothing else does
    unknown = len(bases) - known - gc
    if unknown and unknown != count(upper, "N"):
        return None
    lower = np.count_nonzero(np.greater_equal(bases, _FIRST_LOWER, out=found)) if mixed else 0
    return Tally(gc, unknown, int(lower))


class Records:
    """The records of one file: named, not empty, made of letters, and each name once."""

    def __init__(self, path: Path, kind: SequenceType) -> None:
        self.path = path
        self.kind = kind
        self.name: str | None = None
        """Of the record that is being read."""
        self.length = 0
        """Of that record so far, in bases."""
        self._names: set[str] = set()

    def begin(self, name: str) -> None:
        """Begin the record `name`, once the one before has ended."""
        if not name:
            raise UserError(
                f"{self.path}: record {len(self._names) + 1} has no name; give it one at the "
                "place where others have theirs"
            )
        if name in self._names:
            raise UserError(
                f"{self.path}: two records are named {name!r}; rename or remove one of them"
            )
        self._names.add(name)
        self.name, self.length = name, 0

    def end(self) -> None:
        """End the record; raises UserError where it has no bases."""
        if self.name is not None and self.length == 0:
            raise UserError(f"{self.path}: record {self.name!r} has no bases; remove it")

    def finish(self) -> None:
        """End the file; raises UserError where it holds no record."""
        self.end()
        if self.name is None:
            raise UserError(f"{self.path} holds no sequence: it is empty; fetch it again")

    def piece(self, bases: Bases) -> Piece:
        """The next bases of the record; raises UserError for what is no letter."""
        assert self.name is not None
        counted = tally(bases, self.kind)
        if counted is None:
            letters = np.frombuffer(self.kind.letters.encode("ascii"), dtype=np.uint8)
            stray = int(np.argmin(np.isin(bases, letters)))
            raise self.illegal(chr(bases[stray]), self.length + stray + 1)
        piece = Piece(self.name, self.length, bases, counted)
        self.length += len(bases)
        return piece

    def illegal(self, character: str, position: int) -> UserError:
        """The error for `character` at the 1-based `position` of the record."""
        code, fix = "nucleotide", "correct or remove it"
        if not self.kind.is_nucleic:
            code = "amino-acid"
        elif character in AMINO_ACIDS:
            fix += ", or pass --type protein if these are amino acids"
        return UserError(
            f"{self.path}: record {self.name!r} holds {character!r} at position {position}, "
            f"which is no IUPAC {code} code; {fix}"
        )
