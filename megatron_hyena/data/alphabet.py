"""Bytes as tokens: the special ids, the IUPAC nucleotide codes and their complements.

A token id is the value of the byte itself. The special ids are bytes that no sequence holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bases = npt.NDArray[np.uint8]
"""A one-dimensional array of sequence bytes, case kept."""

EOD = 0  # end of a document
PAD = 1  # fills up a last, short window
MASK = 2  # hides a base from the model

_COMPLEMENTS = dict(
    zip("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN", strict=True)
)  # IUPAC-IUB 1984; U pairs with A, and A is answered with T

IUPAC = "".join(_COMPLEMENTS) + "".join(_COMPLEMENTS).lower()
"""Every nucleotide code a record may hold, both cases."""

_IUPAC_BYTES = IUPAC.encode("ascii")


def _complement_table() -> Bases:
    table = np.arange(256, dtype=np.uint8)
    for base, complement in _COMPLEMENTS.items():
        table[ord(base)] = ord(complement)
        table[ord(base.lower())] = ord(complement.lower())
    table.setflags(write=False)
    return table


COMPLEMENT = _complement_table()
"""[256] complement of each byte; bytes that are no nucleotide code stand for themselves."""


def reverse_complement(bases: Bases) -> Bases:
    """The opposite strand of `bases` [n], read 5' to 3'; case is kept, special ids stay."""
    return COMPLEMENT[bases[::-1]]


def first_illegal(sequence: bytes) -> int | None:
    """Index of the first byte of `sequence` that is no IUPAC nucleotide code, or None."""
    strays = sequence.translate(None, _IUPAC_BYTES)
    return sequence.index(strays[:1]) if strays else None


def is_iupac(bases: Bases) -> bool:
    """Whether every byte of `bases` [n] is an IUPAC nucleotide code of either case."""
    return first_illegal(bases.tobytes()) is None
