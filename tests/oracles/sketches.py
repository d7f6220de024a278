"""Records with sketches made by hand, and what is alike among them by comparing all pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from megatron_hyena.corpus.records import Counts, Record
from megatron_hyena.data.alphabet import SequenceType


def record(
    name: str,
    hashes: Iterable[int] = (),
    bases: int = 100,
    taxon: str = "",
    text: str | None = None,
    kind: SequenceType = SequenceType.DNA,
) -> Record:
    """The record SAMPLE/CONTIG of `bases` bases, all left; `text` stands for its sequence."""
    sample, contig = name.split("/")
    digest = hashlib.sha256((name if text is None else text).encode()).hexdigest()
    sketch = np.array(sorted(hashes), dtype=np.uint64)
    places = ((0, bases),) if bases else ()
    return Record(sample, contig, taxon, kind, bases, digest, places, Counts(bases=bases), sketch)


def alike(a: Record, b: Record) -> float:
    """The k-th root of the share of the smaller sketch that is in the larger one."""
    first, second = set(a.sketch.tolist()), set(b.sketch.tolist())
    k = 7 if a.type is SequenceType.PROTEIN else 21
    smaller = min(len(first), len(second))
    return (len(first & second) / smaller) ** (1 / k) if smaller else 0.0


def components(records: Sequence[Record], wanted: float) -> set[frozenset[str]]:
    """Names of the records that are alike, or joined by others, by growing sets of names."""
    groups = {item.name: frozenset([item.name]) for item in records}
    for a, b in combinations(records, 2):
        if alike(a, b) > 0 and alike(a, b) >= wanted - 1e-9:
            both = groups[a.name] | groups[b.name]
            groups.update(dict.fromkeys(both, both))
    return set(groups.values())
