"""What may be written next: open reading frames, and codons of a given protein.

A frame counts from the first letter that is written (a forced beginning included). A constraint is
asked for the letters that may come next, told each one that came, and says when the sequence ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from megatron_hyena.errors import UserError
from megatron_hyena.generation.genetic_code import STOP, codons_of


class Constraint(Protocol):
    """Of one sequence."""

    def allowed(self, letters: str) -> list[bool]:
        """Which of `letters` may come next; one at least."""
        ...

    def wrote(self, letter: str) -> None:
        """One that came."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing may follow."""
        ...


class OpenFrame:
    """No stop codon in the frame; or, with `until_stop`, the end behind the first.

    Args:
        table: number of the genetic code.
        until_stop: allow a stop codon, and end there.
    """

    def __init__(self, table: int, until_stop: bool = False) -> None:
        codons = codons_of(table)
        self.until_stop = until_stop
        self.stops = {codon for codon, amino in codons.items() if amino == STOP}
        self.open = _beginnings(codon for codon in codons if codon not in self.stops)
        self.codon, self.ended = "", False

    def allowed(self, letters: str) -> list[bool]:
        """See `Constraint.allowed`."""
        if self.until_stop:
            return [True] * len(letters)
        return [self.codon + _dna(letter) in self.open for letter in letters]

    def wrote(self, letter: str) -> None:
        """See `Constraint.wrote`."""
        codon = self.codon + _dna(letter)
        self.ended = self.until_stop and codon in self.stops
        self.codon = codon if len(codon) < 3 else ""


class ProteinFrame:
    """The codons of a protein, one after the other; which ones, the model chooses.

    Args:
        table: number of the genetic code.
        protein: amino acids in one-letter code; `*` is a stop.
        name: of the protein, for messages.

    Raises:
        UserError: an amino acid that no codon of the code stands for, or none at all.
    """

    def __init__(self, table: int, protein: str, name: str = "the protein") -> None:
        codons = codons_of(table)
        self.choices = [
            _beginnings(_codons_for(amino.upper(), codons, table, name, place))
            for place, amino in enumerate(protein, start=1)
        ]
        if not self.choices:
            raise UserError(f"{name} has no amino acids; give one or more")
        self.at, self.codon = 0, ""

    @property
    def length(self) -> int:
        """Letters in all."""
        return 3 * len(self.choices)

    @property
    def ended(self) -> bool:
        """See `Constraint.ended`."""
        return self.at == len(self.choices)

    def allowed(self, letters: str) -> list[bool]:
        """See `Constraint.allowed`."""
        return [self.codon + _dna(letter) in self.choices[self.at] for letter in letters]

    def wrote(self, letter: str) -> None:
        """See `Constraint.wrote`."""
        self.codon += _dna(letter)
        if len(self.codon) == 3:
            self.at, self.codon = self.at + 1, ""


def check_beginning(constraint: Constraint, beginning: str, name: str) -> None:
    """Tell the constraint of a forced beginning.

    Raises:
        UserError: the first letter of it that may not be there.
    """
    for place, letter in enumerate(beginning, start=1):
        if constraint.ended or not constraint.allowed(letter)[0]:
            raise UserError(
                f"the prefix {beginning!r} of {name} breaks the codon constraint with {letter!r} "
                f"at position {place}; the frame begins with the first letter of the prefix"
            )
        constraint.wrote(letter)


def _codons_for(
    amino: str, codons: Mapping[str, str], table: int, name: str, place: int
) -> list[str]:
    found = [codon for codon, stands_for in codons.items() if stands_for == amino]
    if not found:
        raise UserError(
            f"no codon of genetic code {table} stands for {amino!r} at position {place} of {name}"
        )
    return found


def _beginnings(codons: Iterable[str]) -> set[str]:
    """The codons and whatever they begin with."""
    return {codon[:size] for codon in codons for size in (1, 2, 3)}


def _dna(letter: str) -> str:
    return letter.upper().replace("U", "T")
