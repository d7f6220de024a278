"""The two windows of a change: both alleles between the same flanks.

    F = (window - longer allele) // 2
    reference   left flank + REF + right flank
    alternative left flank + ALT + right flank

Flanks have F bases, fewer where the contig ends. No window is longer than asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_hyena.data.alphabet import Bases, reverse_complement
from megatron_hyena.formats.reference import Reference
from megatron_hyena.variants.alleles import Change, in_case_of


@dataclass(frozen=True, eq=False)
class Passage:
    """Bases that a model reads on one strand, and those that count.

    Attributes:
        bases: uint8 [n].
        first: the allele's first base, and not the window's first: nothing foretells that.
        following: the first base behind the allele.
    """

    bases: Bases
    first: int
    following: int

    @property
    def scored(self) -> int:
        """Bases that count."""
        return max(0, len(self.bases) - self.first)


@dataclass(frozen=True, eq=False)
class Windows:
    """Of one change. `left` and `right` flanks in bases; `start` of the window in the contig."""

    start: int
    left: int
    right: int
    reference: Bases
    alternative: Bases

    def passages(self, forward: bool) -> tuple[Passage, Passage]:
        """The reference's and the alternative's on one strand."""
        pair = (self.reference, self.alternative)
        before, behind = (self.left, self.right) if forward else (self.right, self.left)
        made = [
            Passage(
                bases if forward else reverse_complement(bases),
                max(1, before),
                len(bases) - behind,
            )
            for bases in pair
        ]
        return made[0], made[1]


def windows_of(change: Change, reference: Reference, contig: str, window: int) -> Windows:
    """Cut both windows, of at most `window` bases; the change is at most as long."""
    flank = (window - change.longest) // 2
    left = min(flank, change.start)
    right = min(flank, reference.lengths[contig] - change.end)
    start = change.start - left
    # One base more on either side, if there is one, tells whether the change lies in lower case.
    low, high = max(0, change.start - 1), min(reference.lengths[contig], change.end + 1)
    bases = reference.read(contig, start, change.end + right)
    alt = in_case_of(change.alt, reference.read(contig, low, high))
    before, behind = bases[:left], bases[len(bases) - right :]
    return Windows(start, left, right, bases, np.concatenate([before, alt, behind]))
