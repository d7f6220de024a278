"""A change of a sequence in the one form that does not depend on how a file writes it.

`GCAA → GCA`, `CA → C` and `AA → A` may be one deletion. Bases that both alleles share are taken
off both ends; then an insertion or deletion is extended over all places where it could stand as
well, so that both alleles hold the whole of them (the contextual allele of SPDI, Holmes et al.
2020, doi:10.1093/bioinformatics/btz856). Read from the other strand the form is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_hyena.data.alphabet import Bases

_LOWER = np.uint8(0x20)


@dataclass(frozen=True)
class Change:
    """Bases [start, end) of a contig become `alt`, upper case; either may be empty."""

    start: int
    end: int
    alt: bytes

    @property
    def longest(self) -> int:
        """Bases of the longer allele."""
        return max(self.end - self.start, len(self.alt))


def contextual(around: bytes, start: int, end: int, alt: bytes) -> Change | None:
    """The change of [start, end) of `around` to `alt` in its contextual form.

    Args:
        around: upper-case bases as far as the change may be extended.
    Returns:
        Places in `around`; None if nothing changes.
    """
    while start < end and alt and around[end - 1] == alt[-1]:
        end, alt = end - 1, alt[:-1]
    while start < end and alt and around[start] == alt[0]:
        start, alt = start + 1, alt[1:]
    if start == end and not alt:
        return None
    if start < end and alt:
        return Change(start, end, alt)
    moved = alt or around[start:end]
    left = right = 0
    while left < start and around[start - 1 - left] == moved[-1 - left % len(moved)]:
        left += 1
    while end + right < len(around) and around[end + right] == moved[right % len(moved)]:
        right += 1
    shared = around[start - left : start], around[end : end + right]
    return Change(start - left, end + right, shared[0] + alt + shared[1])


def in_case_of(alt: bytes, site: Bases) -> Bases:
    """`alt` in lower case if all of `site` is: the bases it replaces and one on either side."""
    letters = np.frombuffer(alt, dtype=np.uint8)
    lower = len(site) > 0 and bool((site & _LOWER).all())
    return letters | _LOWER if lower else letters
