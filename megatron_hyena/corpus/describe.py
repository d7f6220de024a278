"""What a corpus, a folder of shards or a genome store holds, in numbers for tables and pictures.

Records come with their lengths and what became of them; sequences are read once, for their letters,
their GC by window and the spectrum of their k-mers.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.corpus.curation import CurationRules, count_letters
from megatron_hyena.corpus.kmers import K_OF_PROTEIN, K_OF_STRANDS, Together, codes, sampled
from megatron_hyena.corpus.records import Counts
from megatron_hyena.corpus.splits import SPLITS
from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError

GC_WINDOW = 1024
"""Bases whose GC is one number of the histogram."""
GC_BINS = 50
_PIECE = GC_WINDOW << 10
_JOINED = 1 << 15
"""Bases of short sequences that are counted at a time."""
_COUNTED = 1 << 24
"""K-mers of which the spectrum is made, at most; of more, those with small hashes."""
KEPT = "kept"

Read = Callable[[int, int], Bases]


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: a contig, a transcript, a protein."""

    name: str
    type: str
    taxon: str
    length: int
    decision: str = KEPT
    """`kept`, or the reason why it was left out."""


@dataclass(frozen=True, eq=False)
class Part:
    """The sequence of one split, of a store: all of it."""

    name: str
    stretches: int
    counts: Counts
    nucleic: bool
    gc: npt.NDArray[np.int64]
    """[GC_BINS] windows of `GC_WINDOW` known bases by their fraction of G and C."""


@dataclass(frozen=True, eq=False)
class Description:
    """All of it."""

    path: str
    entries: tuple[Entry, ...]
    """Empty for a folder of shards, which does not tell."""
    parts: tuple[Part, ...]
    spectrum: Mapping[int, int]
    """How often a k-mer occurs → how many distinct k-mers do; both strands are one."""
    scaled: int
    """One k-mer in so many was counted."""
    k: str = f"{K_OF_STRANDS} nucleotides or {K_OF_PROTEIN} amino acids"

    def by(self, key: Callable[[Entry], str]) -> dict[str, tuple[int, int]]:
        """Value of `key` → (records, bases), most bases first."""
        found: dict[str, tuple[int, int]] = {}
        for entry in self.entries:
            records, bases = found.get(key(entry), (0, 0))
            found[key(entry)] = records + 1, bases + entry.length
        return dict(sorted(found.items(), key=lambda item: (-item[1][1], item[0])))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[n] of the records that are kept, longest first."""
        kept = [entry.length for entry in self.entries if entry.decision == KEPT]
        return np.sort(np.array(kept, dtype=np.int64))[::-1]

    def n50(self) -> int:
        """The length that half of the kept bases lie in records of, or in longer ones."""
        lengths = self.lengths
        sums = np.cumsum(lengths)
        return int(lengths[np.searchsorted(sums, sums[-1] / 2)]) if len(lengths) else 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        lengths = self.lengths
        return {
            "path": self.path,
            "types": self.by(lambda entry: entry.type),
            "taxa": self.by(lambda entry: entry.taxon),
            "decisions": self.by(lambda entry: entry.decision),
            "lengths": {
                "records": len(lengths),
                "n50": self.n50(),
                **(
                    {"least": int(lengths[-1]), "greatest": int(lengths[0])} if len(lengths) else {}
                ),
            },
            "parts": {
                part.name: {
                    "stretches": part.stretches,
                    **asdict(part.counts),
                    "gc_histogram": part.gc.tolist() if part.nucleic else None,
                }
                for part in self.parts
            },
            "kmers": {
                "k": self.k,
                "one_in": self.scaled,
                "spectrum": {str(times): n for times, n in sorted(self.spectrum.items())},
            },
        }


def describe(path: Path, progress: Callable[[int], object] = lambda bases: None) -> Description:
    """Read all of `path`: a folder of `tools.prepare_corpus`, of shards, or a genome store.

    `progress` is told bases. Raises UserError where it is none of these.
    """
    entries: tuple[Entry, ...] = ()
    if (path / "genome.zarr").is_dir():
        path = path / "genome.zarr"
    if (path / "zarr.json").is_file():
        store = GenomeStore.open(path)
        entries = tuple(
            Entry(contig.name, store.type.name.lower(), "", contig.length)
            for contig in store.contigs
        )
        sequences = {"all": _of_store(store)}
    else:
        records = path / "plan" / "records.tsv"
        entries = tuple(_entries(records)) if records.is_file() else ()
        shards = path / "shards" if records.is_file() else path
        folders = sorted({index.parent for index in shards.rglob("index.json")}, key=_split_last)
        if not folders:
            raise UserError(
                f"{path} holds neither a corpus of tools.prepare_corpus nor shards nor a genome "
                "store; name such a folder"
            )
        sequences = {str(f.relative_to(shards)): _of_shards(f) for f in folders}
    return _count(path, entries, sequences, progress)


@dataclass(frozen=True, slots=True)
class _Sequence:
    kind: SequenceType
    length: int
    read: Read


def _of_store(store: GenomeStore) -> list[_Sequence]:
    def reader(name: str) -> Read:
        return lambda start, end: store.read(name, start, end)

    return [_Sequence(store.type, c.length, reader(c.name)) for c in store.contigs]


def _of_shards(folder: Path) -> list[_Sequence]:
    runs = open_runs(folder, verify=False)
    return [_Sequence(run.type, run.length, run.read) for run in runs]


def _split_last(folder: Path) -> tuple[str, int, str]:
    """The order of folders: by type, then train, valid, test."""
    number = SPLITS.index(folder.name) if folder.name in SPLITS else len(SPLITS)
    return str(folder.parent), number, folder.name


def _entries(table: Path) -> Iterator[Entry]:
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield Entry(
                row["record"], row["type"], row["taxon"], int(row["length"]), row["decision"]
            )


def _count(
    path: Path,
    entries: tuple[Entry, ...],
    sequences: Mapping[str, Sequence[_Sequence]],
    progress: Callable[[int], object],
) -> Description:
    total = sum(one.length for group in sequences.values() for one in group)
    scaled = max(1, -(-total // _COUNTED))
    parts, kmers = [], list[npt.NDArray[np.uint64]]()
    for name, group in sequences.items():
        counter = _Counter()
        short = {kind: _together(kind, counter, scaled, kmers) for kind in SequenceType}
        for one in group:
            if one.length < GC_WINDOW:
                short[one.kind].add(one.read(0, one.length))
                progress(one.length)
                continue
            for start in range(0, one.length, _PIECE):
                piece = one.read(start, min(start + _PIECE, one.length))
                counter.add(piece, one.kind)
                longer = one.read(start, min(start + _PIECE + _overlap(one.kind), one.length))
                kmers.append(sampled(codes(longer, one.kind), scaled))
                progress(len(piece))
        for rest in short.values():
            rest.finish()
        nucleic = any(one.kind.is_nucleic for one in group)
        parts.append(Part(name, len(group), counter.counts, nucleic, counter.gc))
    _, times = np.unique(np.concatenate([*kmers, np.empty(0, np.uint64)]), return_counts=True)
    multiplicity, distinct = np.unique(times, return_counts=True)
    spectrum = dict(zip(multiplicity.tolist(), distinct.tolist(), strict=True))
    return Description(str(path), entries, tuple(parts), spectrum, scaled)


def _together(
    kind: SequenceType, counter: _Counter, scaled: int, kmers: list[npt.NDArray[np.uint64]]
) -> Together:
    """Where sequences go that are shorter than a window: they are counted many at a time."""

    def count(joined: Bases) -> None:
        counter.counts += count_letters(joined[joined != 0], CurationRules(), kind)
        kmers.append(sampled(codes(joined, kind), scaled))

    return Together(count, _JOINED)


def _overlap(kind: SequenceType) -> int:
    """Bases of the next piece that the last k-mers of a piece need."""
    return (K_OF_STRANDS if kind.is_nucleic else K_OF_PROTEIN) - 1


_IS_GC = np.isin(np.arange(256), list(b"GCSgcs"))
_IS_BASE = np.isin(np.arange(256), list(b"ACGTUacgtu"))


@dataclass
class _Counter:
    counts: Counts = field(default_factory=Counts)
    gc: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(GC_BINS, dtype=np.int64))

    def add(self, piece: Bases, kind: SequenceType) -> None:
        """Take the letters of a piece; windows count from its first base."""
        self.counts += count_letters(piece, CurationRules(), kind)
        whole = len(piece) // GC_WINDOW * GC_WINDOW
        if not kind.is_nucleic or not whole:
            return
        windows = piece[:whole].reshape(-1, GC_WINDOW)
        known = _IS_BASE[windows].sum(axis=1)
        full = known > GC_WINDOW // 2
        share = _IS_GC[windows].sum(axis=1)[full] / known[full]
        places = np.minimum((share * GC_BINS).astype(np.int64), GC_BINS - 1)
        self.gc += np.bincount(places, minlength=GC_BINS)
