"""Bytes as tokens: the special ids, the letters of DNA, RNA and protein, and complements.

A token id is the value of the byte itself. The special ids are bytes that no sequence holds.
Every type of sequence shares the one vocabulary: U stays U, and case is kept.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from megatron_hyena.errors import UserError

Bases = npt.NDArray[np.uint8]
"""A one-dimensional array of sequence bytes, case kept."""
Mask = npt.NDArray[np.bool_]

EOD = 0  # end of a document
PAD = 1  # fills up a last, short window
MASK = 2  # hides a base from the model

_COMPLEMENTS = dict(
    zip("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN", strict=True)
)  # IUPAC-IUB 1984; U pairs with A, and A is answered with T

IUPAC = "".join(_COMPLEMENTS) + "".join(_COMPLEMENTS).lower()
"""Every nucleotide code a record may hold, both cases."""

AMINO_ACIDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz*"
"""Every amino-acid code (IUPAC-IUB 1983, with U, O and J) in both cases, and the stop."""


class SequenceType(IntEnum):
    """What a sequence is made of; the numbers are those of the track `type`."""

    DNA = 0
    RNA = 1
    PROTEIN = 2
    MIXED = 3
    """Records of several types side by side, none of which says which it is."""

    @classmethod
    def named(cls, name: str) -> SequenceType:
        """The type of a name such as `rna`; raises UserError for any other word."""
        if name not in TYPE_NAMES:
            raise UserError(f"{name!r} is no sequence type; use one of {', '.join(TYPE_NAMES)}")
        return cls(TYPE_NAMES.index(name))

    @property
    def is_nucleic(self) -> bool:
        """Whether its letters are nucleotide codes."""
        return self in (SequenceType.DNA, SequenceType.RNA)

    @property
    def letters(self) -> str:
        """The letters that a record may hold: IUPAC nucleotide or amino-acid codes."""
        return IUPAC if self.is_nucleic else AMINO_ACIDS

    @property
    def unknown(self) -> str:
        """The letter, both cases, of which nothing is known: N, but X where N is asparagine."""
        return "Nn" if self.is_nucleic else "Xx"


TYPE_NAMES = tuple(kind.name.lower() for kind in SequenceType)
"""Names of the types by their number, as they are written in files and options."""


def unknown_letters(types: npt.NDArray[np.uint8] | SequenceType, content: Bases) -> Mask:
    """Where bytes `content` are unknown letters of their own type.

    `types` is one type for all, or `SequenceType` numbers of the shape of `content`.
    """
    return _UNKNOWN[types, content]


def _complement_table() -> Bases:
    table = np.arange(256, dtype=np.uint8)
    for base, complement in _COMPLEMENTS.items():
        table[ord(base)] = ord(complement)
        table[ord(base.lower())] = ord(complement.lower())
    table.setflags(write=False)
    return table


def _unknown_table() -> Mask:
    rows = [np.isin(np.arange(256), list(kind.unknown.encode())) for kind in SequenceType]
    table = np.stack(rows)
    table.setflags(write=False)
    return table


_UNKNOWN = _unknown_table()

COMPLEMENT = _complement_table()
"""[256] complement of each byte; bytes that are no nucleotide code stand for themselves."""


_COMPLEMENT_BYTES = COMPLEMENT.tobytes()


def reverse_complement(bases: Bases) -> Bases:
    """The opposite strand of `bases` [n], read 5' to 3'; case is kept, special ids stay."""
    turned = bytearray(bases.tobytes())  # twice as fast as indexing with an array
    turned.reverse()
    return np.frombuffer(turned.translate(_COMPLEMENT_BYTES), dtype=np.uint8)


def first_illegal(sequence: bytes, kind: SequenceType = SequenceType.DNA) -> int | None:
    """Index of the first byte of `sequence` that is no letter of its type, or None."""
    strays = sequence.translate(None, kind.letters.encode("ascii"))
    return sequence.index(strays[:1]) if strays else None


def is_iupac(bases: Bases) -> bool:
    """Whether every byte of `bases` [n] is an IUPAC nucleotide code of either case."""
    return first_illegal(bases.tobytes()) is None
