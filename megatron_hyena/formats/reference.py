"""A reference genome of which any stretch can be read: a sequence file or a genome store.

A file is read once, front to back, and its bases are kept in a scratch file without a name, so
memory holds what is looked at, and gzip is no slower than anything else.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError
from megatron_hyena.formats.sequences import read_sequences


@dataclass(frozen=True)
class Reference:
    """Named sequences.

    Attributes:
        path: of the file or store, for messages.
        kind: what the bases are.
        lengths: contig → bases, in order.
        digest: SHA-256 of the file, or of what a store says of itself.
    """

    path: Path
    kind: SequenceType
    lengths: dict[str, int]
    digest: str
    _read: Callable[[str, int, int], Bases]

    def read(self, contig: str, start: int, end: int) -> Bases:
        """Bases uint8 [end - start] of [start, end), 0-based; raises UserError beyond its ends."""
        if contig not in self.lengths:
            raise UserError(self.unknown(contig))
        if not 0 <= start <= end <= self.lengths[contig]:
            raise UserError(
                f"{contig}:{start}-{end} is not inside {contig} of {self.path}, which has "
                f"{self.lengths[contig]} bases; ask for less"
            )
        return self._read(contig, start, end)

    def unknown(self, contig: str) -> str:
        """A sentence on a contig that is not here: the likely one, or the nearest, is named."""
        renamed, near = other_name(contig, self.lengths), ""
        if renamed is not None:
            return (
                f"{self.path} has no contig {contig!r} but {renamed!r}; rename one side (as by "
                "bcftools annotate --rename-chrs) or give the reference with those names"
            )
        if found := difflib.get_close_matches(contig, list(self.lengths), n=1, cutoff=0.0):
            near = f"; the nearest of its {len(self.lengths)} is {found[0]!r}"
        return f"{self.path} has no contig {contig!r}{near}; give the reference it belongs to"


def other_name(contig: str, known: Iterable[str]) -> str | None:
    """The same chromosome in the other habit of naming (`7`, `chr7`; `MT`, `chrM`), if known."""
    known, bare = set(known), contig.removeprefix("chr")
    mitochondrial = ["M", "MT", "chrM", "chrMT"] if bare in ("M", "MT") else []
    for name in (f"chr{bare}", bare, *mitochondrial):
        if name != contig and name in known:
            return name
    return None


def open_reference(path: Path, kind: SequenceType = SequenceType.DNA) -> Reference:
    """A genome store (a folder), or FASTA, 2bit, GenBank or EMBL, plain or gzip, of `kind`.

    Raises:
        UserError: as `GenomeStore.open` and `read_sequences`.
    """
    if path.is_dir():
        store = GenomeStore.open(path)
        lengths = {contig.name: contig.length for contig in store.contigs}
        described = json.dumps(store.attributes, sort_keys=True).encode()
        digest = hashlib.sha256(described).hexdigest()
        return Reference(path, store.type, lengths, digest, store.read)
    return _in_scratch(path, kind)


def _in_scratch(path: Path, kind: SequenceType) -> Reference:
    lengths: dict[str, int] = {}
    digest = hashlib.sha256()
    with tempfile.TemporaryFile() as file:
        for piece in read_sequences(path, kind=kind, digest=digest):
            file.write(piece.bases.tobytes())
            lengths[piece.record] = piece.start + len(piece.bases)
        file.flush()
        bases = np.memmap(file, dtype=np.uint8, mode="r")
    ends = np.cumsum(list(lengths.values())).tolist()
    begins = {name: end - lengths[name] for name, end in zip(lengths, ends, strict=True)}

    def read(contig: str, start: int, end: int) -> Bases:
        first = begins[contig]
        return np.array(bases[first + start : first + end])

    return Reference(path, kind, lengths, digest.hexdigest(), read)
