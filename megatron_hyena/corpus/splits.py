"""Train, valid and test by position, with gaps between them.

A contig of n bases, long enough, is cut in three: the last `test_fraction` of it is test, the
`valid_fraction` before that (and before a gap) is valid, and what lies before another gap is
train:

    | train ............................ | gap | valid ..... | gap | test ..... |

A contig is long enough when each held-out part has at least `gap` bases and something is left to
train on. A shorter one goes whole to one split, chosen by a hash of its name: with u the first 8
bytes of SHA-256(name) over 2^64, test where u < test_fraction, valid where u < test_fraction +
valid_fraction, else train. So the split of a contig depends on nothing but itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_hyena.data.store import Contig
from megatron_hyena.errors import UserError

SPLITS = ("train", "valid", "test")


DEFAULT_GAP = 8192


@dataclass(frozen=True)
class SplitRule:
    """How contigs are divided; the fractions are of each contig, the gap is in bases.

    Raises UserError for fractions that are negative or leave nothing to train on.
    """

    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    gap: int = DEFAULT_GAP
    """At least the longest window that will be trained on."""

    def __post_init__(self) -> None:
        fractions = (self.valid_fraction, self.test_fraction)
        if min(fractions) < 0 or sum(fractions) >= 1:
            raise UserError(
                f"the valid and test fractions are {fractions[0]} and {fractions[1]}; "
                "give two numbers from 0 that add up to less than 1"
            )
        if self.gap < 0:
            raise UserError(f"the gap is {self.gap} bases; give 0 or more")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are to have bases."""
        fractions = (1.0, self.valid_fraction, self.test_fraction)
        return tuple(s for s, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bases [start, end) of a contig, all of one split."""

    split: str
    contig: str
    start: int
    end: int


def default_gap(contigs: Sequence[Contig], valid_fraction: float, test_fraction: float) -> int:
    """8192 bases, or as many as the longest contig's smaller held-out part has.

    So a genome of one short contig can be cut at all.
    """
    longest = max(contig.length for contig in contigs)
    held_out = [round(longest * f) for f in (valid_fraction, test_fraction) if f > 0]
    return min([DEFAULT_GAP, *held_out])


def split_contigs(contigs: Sequence[Contig], rule: SplitRule) -> list[Stretch]:
    """The stretches of every contig, in the order of contig and position."""
    return [stretch for contig in contigs for stretch in _split(contig, rule)]


def _split(contig: Contig, rule: SplitRule) -> list[Stretch]:
    stretches: list[Stretch] = []
    end = contig.length
    for split, fraction in (("test", rule.test_fraction), ("valid", rule.valid_fraction)):
        if fraction > 0:
            length = round(contig.length * fraction)
            if length < max(rule.gap, 1):
                return [_whole(contig, rule)]
            stretches.append(Stretch(split, contig.name, end - length, end))
            end -= length + rule.gap
    if end <= 0:
        return [_whole(contig, rule)]
    return [Stretch("train", contig.name, 0, end), *reversed(stretches)]


def _whole(contig: Contig, rule: SplitRule) -> Stretch:
    digest = hashlib.sha256(contig.name.encode("utf-8")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < rule.test_fraction:
        split = "test"
    elif place < rule.test_fraction + rule.valid_fraction:
        split = "valid"
    else:
        split = "train"
    return Stretch(split, contig.name, 0, contig.length)
