"""Sketches of sequences: a fixed share of the hashes of their k-mers, and how alike two are.

FracMinHash (Irber et al. 2022, doi:10.1101/2022.01.11.475838) keeps every k-mer whose hash lies
below 2^64 / scaled: one in `scaled`, the same ones in every sequence. So sketches of sequences of
any two lengths can be compared, and a long one holds what a part of it holds. The hashes are those
of sourmash, so other sketches of sourmash can be compared with them.

Nucleotides: canonical 21-mers, equal on both strands, U read as T; those with another letter than
ACGT are left out. Protein: 7-mers of amino acids, without X, stops and ambiguous codes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_hyena.corpus.kmers import distinct
from megatron_hyena.corpus.records import Hashes
from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.errors import UserError

NUCLEOTIDE_K = 21
PROTEIN_K = 7
_EMPTIED = 1 << 24
"""Letters after which the library's hashes are taken over; it needs ten times our memory."""
_U_TO_T = bytes.maketrans(b"U", b"T")
_NO_AMINO_ACID = re.compile("[^ACDEFGHIKLMNOPQRSTUVWY]+")


@dataclass(frozen=True)
class SketchRules:
    """How much of a sequence is kept. Raises UserError for less than 1.

    A sketch of n letters has n / scaled hashes; one without any is alike to nothing. At 100 a
    sequence of 1,000 bases has ten, and one in 20,000 such sequences has none; ten tell a
    similarity of 0.95 to about 0.02. At 1,000, usual for genomes, four in ten would have none.
    Proteins are shorter: of 300 amino acids, one in ten leaves thirty.
    """

    scaled: int = 100
    """One of so many 21-mers of nucleotides is kept."""
    protein_scaled: int = 10
    """One of so many 7-mers of amino acids is kept."""

    def __post_init__(self) -> None:
        for name in ("scaled", "protein_scaled"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; give 1 (all k-mers) or more")


DEFAULT_SKETCH = SketchRules()


def k_of(kind: SequenceType) -> int:
    """Letters of a k-mer of sequences of this type."""
    return NUCLEOTIDE_K if kind.is_nucleic else PROTEIN_K


@dataclass
class Sketcher:
    """Takes stretches of one sequence in pieces of any size."""

    kind: SequenceType
    rules: SketchRules = SketchRules()
    _parts: list[Hashes] = field(default_factory=list)
    _tail: str = ""
    _letters: int = 0
    _minhash: Any = None

    def __post_init__(self) -> None:
        self._minhash = _minhash(self.kind, self.rules)

    def begin(self) -> None:
        """What comes next does not join what was added before."""
        self._tail = ""

    def add(self, bases: Bases) -> None:
        """Add `bases` uint8 [n], which follow those added before; case does not matter."""
        upper = bases.tobytes().upper()
        if self.kind.is_nucleic:
            text = self._tail + upper.translate(_U_TO_T).decode("ascii")
            self._minhash.add_sequence(text, force=True)  # k-mers with other letters left out
        else:
            text = self._tail + upper.decode("ascii")
            for part in _NO_AMINO_ACID.split(text):
                self._minhash.add_protein(part)
        self._tail = text[max(0, len(text) - k_of(self.kind) + 1) :]
        self._letters += len(bases)
        if self._letters >= _EMPTIED:
            self._take_over()
            self._minhash, self._letters = _minhash(self.kind, self.rules), 0

    def hashes(self) -> Hashes:
        """uint64 [m], sorted, each once: of all that was added."""
        self._take_over()
        return distinct(np.concatenate(self._parts))

    def _take_over(self) -> None:
        self._parts.append(np.fromiter(self._minhash.hashes, dtype=np.uint64))


def _minhash(kind: SequenceType, rules: SketchRules) -> Any:
    """An empty sketch of the library; raises UserError where it is not installed."""
    try:
        from sourmash import MinHash
    except ImportError as error:
        raise UserError(
            "sketches need sourmash, which is not installed; pip install megatron-hyena[curate], "
            "or turn off near-duplicates, clusters and sketches"
        ) from error
    if kind.is_nucleic:
        return MinHash(n=0, ksize=NUCLEOTIDE_K, scaled=rules.scaled)
    return MinHash(n=0, ksize=PROTEIN_K, is_protein=True, scaled=rules.protein_scaled)


def shared(a: Hashes, b: Hashes) -> int:
    """How many hashes both sketches hold."""
    short, long = sorted((a, b), key=len)
    if not len(short):
        return 0
    places = np.searchsorted(long, short)
    places[places == len(long)] = 0
    return int(np.count_nonzero(long[places] == short))


def containment(a: Hashes, b: Hashes) -> float:
    """The fraction of `a` that is in `b`; 0 of an empty sketch."""
    return shared(a, b) / len(a) if len(a) else 0.0


def jaccard(a: Hashes, b: Hashes) -> float:
    """What both hold over what either holds; 0 of two empty sketches."""
    both = shared(a, b)
    either = len(a) + len(b) - both
    return both / either if either else 0.0


def similarity(fraction: float, k: int) -> float:
    """The identity of two sequences of which `fraction` of the k-mers are shared.

    fraction^(1/k): each of k letters is unchanged with this probability, if changes are
    independent. Of a containment it estimates the average nucleotide identity (Hera et al. 2023,
    doi:10.1101/gr.277651.123); sequence that one has and the other lacks lowers it too.
    """
    return float(fraction ** (1 / k))


def least_shared(size: int, wanted: float, k: int) -> int:
    """How many of `size` hashes must be shared for a similarity of `wanted`: one at least."""
    return max(1, math.ceil(wanted**k * size - 1e-9))
