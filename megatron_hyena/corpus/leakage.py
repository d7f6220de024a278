"""Leakage between splits: what fraction of the k-mers of one split occurs in another.

Two random genomes share next to no 31-mers; two strains share most of them. So the fraction of a
held-out split's k-mers that are in train tells how much of it was seen in training, whatever rule
made the splits. A naive split, every contig for itself, is counted beside the chosen one.

K-mers are counted from the sequences (`of_sequences`), every one in a small corpus and a fixed
sample of them in a larger one, or taken from the records' sketches (`of_sketches`) where splits
hold whole records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_hyena.corpus.kmers import (
    K_OF_PROTEIN,
    K_OF_STRANDS,
    Distinct,
    Together,
    codes,
    sampled,
)
from megatron_hyena.corpus.records import Hashes, Record
from megatron_hyena.corpus.sketch import NUCLEOTIDE_K, PROTEIN_K, shared
from megatron_hyena.corpus.splits import SPLITS, Stretch
from megatron_hyena.corpus.splitting import Splitting
from megatron_hyena.data.alphabet import Bases, SequenceType

EXACT_BASES = 1 << 25
"""Up to so many bases every k-mer is counted: 8 bytes of memory each, and as much for sorting."""
_PIECE = 1 << 15
"""Bases that are worked on at a time: their k-mers stay in the processor's cache."""

Read = Callable[[str, int, int], Bases]
"""(SAMPLE/CONTIG, start, end) → uint8 [end - start]."""


@dataclass(frozen=True)
class Overlap:
    """Distinct k-mers of the splits, and of every two splits together."""

    kmers: Mapping[str, int]
    """Split → how many it has."""
    both: Mapping[tuple[str, str], int]
    """(split, other split) → how many occur in both."""

    def fraction(self, split: str, other: str) -> float:
        """The fraction of the k-mers of `split` that occur in `other`; 0 of an empty split."""
        if not self.kmers[split]:
            return 0.0
        return self.both[split, other] / self.kmers[split]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `kmers` by split, and `fractions` by split and other split."""
        fractions = {a: {b: self.fraction(a, b) for b in SPLITS if b != a} for a in SPLITS}
        return {"kmers": dict(self.kmers), "fractions": fractions}


@dataclass(frozen=True)
class LeakageReport:
    """A naive split of the corpus, and the one that was chosen."""

    method: str
    """Which k-mers were counted."""
    before: Overlap
    """Naive: every contig for itself."""
    after: Overlap
    """As chosen."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {"before": self.before.as_dict(), "after": self.after.as_dict()}
        return {"method": self.method, **parts}

    def table(self) -> str:
        """Lines of text: of each split its k-mers, and how many of a hundred are in the others."""
        head = f"{'':8}{'split':8}{'k-mers':>14}" + "".join(f"{'in ' + s:>12}" for s in SPLITS)
        lines = [f"Shared k-mers between splits: {self.method}.", head]
        for when, overlap in (("naive", self.before), ("chosen", self.after)):
            for split in SPLITS:
                cells = (
                    "" if other == split else f"{overlap.fraction(split, other):.4%}"
                    for other in SPLITS
                )
                row = "".join(f"{cell:>12}" for cell in cells)
                lines.append(f"{when:8}{split:8}{overlap.kmers[split]:>14,}{row}".rstrip())
        return "\n".join(lines)


def of_sequences(
    records: Sequence[Record],
    before: Splitting,
    after: Splitting,
    read: Read,
    scaled: int | None = None,
) -> LeakageReport:
    """Count canonical 31-mers of nucleotides, on both strands, and 12-mers of amino acids.

    One of `scaled` k-mers is counted, the same ones everywhere; by default all, where that is at
    most `EXACT_BASES`. The splittings are of `records`.
    """
    if scaled is None:
        scaled = max(1, math.ceil(sum(r.counts.bases for r in records) / EXACT_BASES))
    kinds = {record.name: record.type for record in records}

    def overlap(stretches: Iterable[Stretch]) -> Overlap:
        found = {split: Distinct() for split in SPLITS}
        counters: dict[tuple[str, SequenceType], Together] = {}

        def counter(split: str, kind: SequenceType) -> Together:
            return Together(lambda b: found[split].add(sampled(codes(b, kind), scaled)), _PIECE)

        for stretch in stretches:
            kind = kinds[stretch.contig]
            k = K_OF_STRANDS if kind.is_nucleic else K_OF_PROTEIN
            key = (stretch.split, kind)
            if key not in counters:
                counters[key] = counter(*key)
            for start in range(stretch.start, stretch.end, _PIECE):
                bases = read(stretch.contig, start, min(start + _PIECE + k - 1, stretch.end))
                counters[key].add(bases)
        for one in counters.values():
            one.finish()
        return _overlap({split: kmers.values() for split, kmers in found.items()})

    some = "all" if scaled == 1 else f"one in {scaled:,} of the"
    method = f"{some} {K_OF_STRANDS}-mers of nucleotides and {K_OF_PROTEIN}-mers of amino acids"
    naive = overlap(before.stretches)
    same = set(before.stretches) == set(after.stretches)  # as by contig
    return LeakageReport(method, naive, naive if same else overlap(after.stretches))


def of_sketches(records: Sequence[Record], before: Splitting, after: Splitting) -> LeakageReport:
    """From the sketches of `records`, without a look at the sequences.

    Raises ValueError where a record lies in two splits, as by position: its sketch is of both.
    """
    overlaps = (_of_sketches(records, splitting) for splitting in (before, after))
    method = f"sketches of {NUCLEOTIDE_K}-mers of nucleotides and {PROTEIN_K}-mers of amino acids"
    return LeakageReport(method, *overlaps)


def _of_sketches(records: Sequence[Record], splitting: Splitting) -> Overlap:
    splits: dict[str, str] = {}
    for stretch in splitting.stretches:
        if splits.setdefault(stretch.contig, stretch.split) != stretch.split:
            raise ValueError(f"{stretch.contig} lies in two splits; count its sequence")
    found = {split: Distinct() for split in SPLITS}
    for record in records:
        if record.name in splits:
            found[splits[record.name]].add(record.sketch)
    return _overlap({split: kmers.values() for split, kmers in found.items()})


def _overlap(kmers: Mapping[str, Hashes]) -> Overlap:
    both = {(a, b): shared(kmers[a], kmers[b]) for a in SPLITS for b in SPLITS if a != b}
    return Overlap({split: len(kmers[split]) for split in SPLITS}, both)
