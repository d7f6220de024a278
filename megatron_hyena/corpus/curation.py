"""What of the sequences is worth training on: rules, and how they are applied to records.

The store keeps every base. Rules are applied in two places: `survey` reads a store once and
notes, for each contig, the stretches that are left; `decisions.py` keeps or drops whole records.
Ambiguous codes are replaced where shards are written (`replace_ambiguous`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_hyena.corpus.records import Counts, Hashes, Record
from megatron_hyena.corpus.sketch import DEFAULT_SKETCH, Sketcher, SketchRules
from megatron_hyena.data.alphabet import (
    Bases,
    Mask,
    SequenceType,
    reverse_complement,
    unknown_letters,
)
from megatron_hyena.data.store import CHUNK, Contig, GenomeStore
from megatron_hyena.errors import UserError

IUPAC_POLICIES = ("keep", "unknown", "part")
Stretches = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CurationRules:
    """What is left out. Raises UserError for values that are out of range."""

    minimum_length: int = 1
    """Bases; what is shorter, record or stretch, is left out."""
    unknown_run: int = 10
    """A run of so many N (of protein: X) or more parts a record into stretches; 0: never. Runs of
    ten are what assembly statistics count as gaps."""
    iupac: str = "keep"
    """Codes that stand for some letters but not for all, such as R: `keep` them, let them be
    `unknown` (N in the shards, and counted as N here), or let them `part` a record."""
    exclude_taxa: tuple[str, ...] = ()
    """Names of taxa, or of levels of lineages, whose records are left out."""
    exact_duplicates: bool = True
    """Leave out what equals another record, or its reverse complement."""
    near_duplicates: float = 0.0
    """Leave out what is so similar to a record that is kept, 0 to 1; 0: nothing."""

    def __post_init__(self) -> None:
        if self.minimum_length < 1:
            raise UserError(f"minimum_length is {self.minimum_length}; give 1 or more")
        if self.unknown_run < 0:
            raise UserError(f"unknown_run is {self.unknown_run}; give 0 (never) or more")
        if self.iupac not in IUPAC_POLICIES:
            raise UserError(f"iupac is {self.iupac!r}; give one of {', '.join(IUPAC_POLICIES)}")
        if not 0 <= self.near_duplicates <= 1:
            raise UserError(
                f"near_duplicates is {self.near_duplicates}; give a similarity from 0 (off) to 1"
            )
        if any(not name.strip() for name in self.exclude_taxa):
            raise UserError("exclude_taxa holds a name without letters; remove it")


def stretches_of(
    pieces: Iterable[Bases], rules: CurationRules, kind: SequenceType = SequenceType.DNA
) -> Stretches:
    """[start, end) of what is left of one sequence, which comes in consecutive pieces uint8 [n].

    Memory grows with a piece and with the number of gaps, not with the sequence.
    """
    runs = _Runs()
    for piece in pieces:
        runs.add(_classes(piece, rules, kind))
    classes, starts, ends = runs.finish()
    parting = np.zeros(len(starts), dtype=np.bool_)
    if rules.unknown_run:
        parting |= (classes == _UNKNOWN) & (ends - starts >= rules.unknown_run)
    if rules.iupac == "part":
        parting |= classes == _AMBIGUOUS
    begins = np.concatenate([[0], ends[parting]])
    stops = np.concatenate([starts[parting], [runs.length]])
    long = stops - begins >= rules.minimum_length
    return tuple(zip(begins[long].tolist(), stops[long].tolist(), strict=True))


def replace_ambiguous(bases: Bases, rules: CurationRules, kind: SequenceType) -> Bases:
    """`bases` [n] as they go into shards: with `iupac: unknown` ambiguous codes become N or X.

    Case is kept. The input is returned itself where nothing changes.
    """
    if rules.iupac != "unknown":
        return bases
    ambiguous = _AMBIGUOUS_LETTERS[kind, bases]
    if not ambiguous.any():
        return bases
    unknown = np.uint8(ord(kind.unknown[0])) | (bases & 0x20)
    return np.where(ambiguous, unknown, bases)


def survey(
    store: GenomeStore,
    sample: str,
    taxon: str = "",
    rules: CurationRules = CurationRules(),
    sketch: SketchRules | None = DEFAULT_SKETCH,
    progress: Callable[[int], object] = lambda bases: None,
) -> list[Record]:
    """The record of every contig of `store`, in order; memory does not grow with the contigs.

    `sketch=None` makes no sketches, and needs no library for them. `progress` is told the bases of
    each contig. Raises UserError for a sample's name that is empty or holds a slash.
    """
    if not sample or "/" in sample:
        raise UserError(
            f"a sample is named {sample!r}; give it a name without '/', "
            "which parts it from its contigs' names"
        )
    records = []
    for contig in store.contigs:
        records.append(_record(store, contig, (sample, taxon), rules, sketch))
        progress(contig.length)
    return records


def sequence_digest(
    read: Callable[[int, int], Bases], length: int, kind: SequenceType, piece: int = CHUNK
) -> str:
    """Hexadecimal SHA-256 of a sequence in upper case, with T for U.

    Of DNA the smaller one of its two strands', so that a sequence and its reverse complement have
    one digest. `read(start, end)` gives bases uint8 [end - start].
    """
    starts = range(0, length, piece)
    forward = _digest((read(s, min(s + piece, length)) for s in starts), kind)
    if kind is not SequenceType.DNA:
        return forward
    backward = (reverse_complement(read(s, min(s + piece, length))) for s in reversed(starts))
    return min(forward, _digest(backward, kind))


def _digest(pieces: Iterable[Bases], kind: SequenceType) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        upper = piece.tobytes().upper()
        digest.update(upper.replace(b"U", b"T") if kind.is_nucleic else upper)
    return digest.hexdigest()


def _record(
    store: GenomeStore,
    contig: Contig,
    names: tuple[str, str],
    rules: CurationRules,
    sketch: SketchRules | None,
) -> Record:
    whole = store.read(contig.name, 0, contig.length) if contig.length <= CHUNK else None

    def read(start: int, end: int) -> Bases:
        return store.read(contig.name, start, end) if whole is None else whole[start:end]

    kind = store.type
    digest = sequence_digest(read, contig.length, kind)
    stretches = stretches_of(_pieces(read, 0, contig.length), rules, kind)
    counts, hashes = _content(read, stretches, rules, kind, sketch)
    sample, taxon = names
    return Record(
        sample, contig.name, taxon, kind, contig.length, digest, stretches, counts, hashes
    )


def _pieces(read: Callable[[int, int], Bases], start: int, end: int) -> Iterator[Bases]:
    for place in range(start, end, CHUNK):
        yield read(place, min(place + CHUNK, end))


def _content(
    read: Callable[[int, int], Bases],
    stretches: Stretches,
    rules: CurationRules,
    kind: SequenceType,
    sketch: SketchRules | None,
) -> tuple[Counts, Hashes]:
    """Letters and hashes of what is left."""
    sketcher = Sketcher(kind, sketch) if sketch else None
    counts = Counts()
    for start, end in stretches:
        if sketcher:
            sketcher.begin()
        for piece in _pieces(read, start, end):
            counts += count_letters(piece, rules, kind)
            if sketcher:
                sketcher.add(piece)
    return counts, sketcher.hashes() if sketcher else np.empty(0, dtype=np.uint64)


def count_letters(bases: Bases, rules: CurationRules, kind: SequenceType) -> Counts:
    """The letters of `bases` [n]; with `iupac: unknown` ambiguous codes count as unknown."""
    classes = _classes(bases, rules, kind)
    letters = np.bincount(bases, minlength=256)
    gc = int(letters[list(b"GCgc")].sum()) if kind.is_nucleic else 0
    unknown, ambiguous = (int(np.count_nonzero(classes == c)) for c in (_UNKNOWN, _AMBIGUOUS))
    lower = int(letters[ord("a") : ord("z") + 1].sum())
    return Counts(len(bases), gc, unknown, ambiguous, lower)


_KNOWN, _UNKNOWN, _AMBIGUOUS = 0, 1, 2


def _ambiguous_table() -> Mask:
    """[type, byte] whether a byte is a code for some letters but not for all."""
    nucleic, protein, every = b"RYSWKMBDHVryswkmbdhv", b"BJZbjz", np.arange(256)
    rows = [nucleic, nucleic, protein, b""]  # in the order of `SequenceType`
    return np.stack([np.isin(every, list(row)) for row in rows])


_AMBIGUOUS_LETTERS = _ambiguous_table()
_ALL_BYTES: Bases = np.arange(256, dtype=np.uint8)


def _classes(bases: Bases, rules: CurationRules, kind: SequenceType) -> npt.NDArray[np.uint8]:
    """[n] class of every letter, as the rules see it."""
    return _class_table(rules.iupac, kind)[bases]


@lru_cache
def _class_table(iupac: str, kind: SequenceType) -> npt.NDArray[np.uint8]:
    """[256] class of every byte."""
    table = np.where(_AMBIGUOUS_LETTERS[kind], _AMBIGUOUS, _KNOWN)
    if iupac == "unknown":
        table[_AMBIGUOUS_LETTERS[kind]] = _UNKNOWN
    table[unknown_letters(kind, _ALL_BYTES)] = _UNKNOWN
    return table.astype(np.uint8)


class _Runs:
    """Runs of letters of one class other than known, over pieces."""

    def __init__(self) -> None:
        self.length = 0
        self._found: list[npt.NDArray[np.int64]] = []  # each [3, runs]: class, start, end
        self._open: npt.NDArray[np.int64] = np.empty((3, 0), dtype=np.int64)

    def add(self, classes: npt.NDArray[np.uint8]) -> None:
        """Take the classes [n] of the next piece."""
        if not len(classes):
            return
        runs = np.empty((3, 0), dtype=np.int64)
        if classes.any():
            edges = np.flatnonzero(classes[1:] != classes[:-1]) + 1
            starts = np.concatenate([[0], edges])
            ends = np.concatenate([edges, [len(classes)]])
            runs = np.stack([classes[starts], starts + self.length, ends + self.length])
            runs = runs[:, runs[0] != _KNOWN]
        if self._open.shape[1] and runs.shape[1]:
            last, first = self._open[:, 0], runs[:, 0]
            if last[0] == first[0] and last[2] == first[1]:
                runs[1, 0] = last[1]
                self._open = self._open[:, :0]
        self._found.append(self._open)
        self.length += len(classes)
        # The last run may go on in the next piece.
        self._found.append(runs[:, :-1])
        self._open = runs[:, -1:]

    def finish(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Class, start and end of every run, in order."""
        classes, starts, ends = np.concatenate([*self._found, self._open], axis=1)
        return classes, starts, ends
