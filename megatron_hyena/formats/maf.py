"""Multiple alignments in MAF (genome.ucsc.edu/FAQ/FAQformat.html#format5), seen from one row.

The rows of the reference are put back in their places and make its genome again; of each of its
bases it is told which fraction of the block's other rows has the same base, upper and lower case
alike. Bases that no block covers are N, and of unknown identity.

Blocks may come in any order, so what is placed goes to two scratch files, not to memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import Bases, SequenceType, reverse_complement
from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import Digest, read_lines
from megatron_hyena.formats.features import whole_number
from megatron_hyena.formats.pieces import BLOCK, Piece, Records

Identity = npt.NDArray[np.float32]
_LONGEST_ROW = 1 << 30
_UPPER = 0xDF
_GAP, _UNCOVERED = ord("-"), ord("N")


def is_maf(start: bytes) -> bool:
    """Whether a file that begins with `start` is MAF."""
    words = start.split(maxsplit=1)
    return bool(words) and (words[0].startswith(b"##maf") or words[0] in (b"a", b"track"))


@dataclass(frozen=True, eq=False)
class _Row:
    """One `s` line: where its sequence begins, on which strand, and the aligned text."""

    line: int
    source: str
    start: int
    size: int
    strand: str
    total: int
    text: bytes


@dataclass(eq=False)
class Projection:
    """The reference of an alignment, base by base; to be closed."""

    path: Path
    reference: str
    bases: int
    """Descriptor of a scratch file: a byte per base, 0 where uncovered."""
    identity: int
    """Descriptor of a scratch file: a float32 per base."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Of the contigs, in the order in which the file names them first."""
    starts: dict[str, int] = field(default_factory=dict)
    total: int = 0

    def close(self) -> None:
        """Give the scratch files back."""
        os.close(self.bases)
        os.close(self.identity)

    def pieces(self, block_bytes: int, kind: SequenceType) -> Iterator[Piece]:
        """The sequences as `read_pieces` yields those of FASTA files."""
        records = Records(self.path, kind)
        for name, length in self.lengths.items():
            records.begin(name)
            for start in range(0, length, block_bytes):
                size = min(block_bytes, length - start)
                bases = self._covered(self.starts[name] + start, size)
                bases[bases == 0] = _UNCOVERED
                yield records.piece(bases)
        records.finish()

    def identities(self, block_bytes: int = BLOCK) -> Iterator[Identity]:
        """float32, one for each base of all contigs one after another; NaN where unknown."""
        for start in range(0, self.total, block_bytes):
            size = min(block_bytes, self.total - start)
            stored = os.pread(self.identity, 4 * size, 4 * start).ljust(4 * size, b"\0")
            values = np.frombuffer(stored, dtype=np.float32).copy()
            values[self._covered(start, size) == 0] = np.nan
            yield values

    def place(self, row: _Row, bases: Bases, identity: Identity) -> None:
        """Store what a block says; raises UserError where another one spoke of the same bases."""
        name = row.source.removeprefix(f"{self.reference}.")
        if self.lengths.setdefault(name, row.total) != row.total:
            raise UserError(
                f"{self.path}: line {row.line}: {row.source} has {row.total} bases here, but "
                f"{self.lengths[name]} before; correct it"
            )
        if name not in self.starts:
            self.starts[name] = self.total
            self.total += row.total
        start = row.start
        if row.strand == "-":
            start = row.total - row.start - row.size
            bases, identity = reverse_complement(bases), identity[::-1].copy()
        if np.any(self._covered(self.starts[name] + start, row.size)):
            raise UserError(
                f"{self.path}: line {row.line}: {row.source}:{start}-{start + row.size} overlaps "
                "another block; project the alignment on its reference, each base once "
                "(maf_project or mafFilter do)"
            )
        os.pwrite(self.bases, bases.tobytes(), self.starts[name] + start)
        os.pwrite(self.identity, identity.tobytes(), 4 * (self.starts[name] + start))

    def _covered(self, start: int, size: int) -> Bases:
        """A copy of the stored bases, 0 where there are none."""
        stored = os.pread(self.bases, size, start).ljust(size, b"\0")
        return np.frombuffer(stored, dtype=np.uint8).copy()


def project_maf(
    path: Path, scratch: Path, reference: str | None = None, digest: Digest | None = None
) -> Projection:
    """Read a MAF file, plain or gzip, as the genome of one of its rows.

    `reference`: the part of the source names before the contig's, such as hg38 of `hg38.chr1`, or
    a whole source name; by default what the first row has before its first dot. `scratch`: an
    existing folder, in which nothing is seen of the scratch files; they take 5 bytes a base.

    Raises UserError, with the line, for what is no MAF, blocks of the reference that overlap or
    contradict each other, and where no row is of the reference.
    """
    blocks = _blocks(path, digest)
    first = next(blocks, None)
    if first is None:
        raise UserError(f"{path} holds no alignment blocks; give another file")
    reference = reference or first[0].source.partition(".")[0]
    projection = Projection(path, reference, _scratch(scratch), _scratch(scratch))
    try:
        for block in chain([first], blocks):
            _project(projection, block)
        if not projection.lengths:
            found = ", ".join(sorted({row.source.partition(".")[0] for row in first})[:8])
            raise UserError(
                f"{path} has no row of {reference!r}; its first block has rows of {found}: name "
                "one of these by --maf-reference"
            )
    except BaseException:
        projection.close()
        raise
    return projection


def _scratch(folder: Path) -> int:
    """A new file without a name: it vanishes with its descriptor."""
    descriptor, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)
    return descriptor


def _blocks(path: Path, digest: Digest | None) -> Iterator[list[_Row]]:
    """The rows of each block, one at least: those between two `a` lines."""
    rows: list[_Row] = []
    begun = False
    for number, line in enumerate(read_lines(path, _LONGEST_ROW, digest), start=1):
        kind = line[:2].rstrip()
        if kind == "s" and begun:
            rows.append(_row(path, number, line))
        elif kind == "s":
            raise UserError(
                f"{path}: line {number} is a row of no block, for no 'a' line stands before it; "
                "fetch the file again"
            )
        elif kind == "a":
            begun = True
            if rows:
                yield rows
            rows = []
        elif kind and kind[0] not in "aieq#" and not line.startswith("track"):
            raise UserError(
                f"{path}: line {number}: {line[:20]!r} is no line of a MAF file, which begin with "
                "a, s, i, e, q or #; correct or remove it"
            )
    if rows:
        yield rows


def _row(path: Path, number: int, line: str) -> _Row:
    words = line.split()
    places = [whole_number(word) for word in (*words[2:4], *words[5:6])]
    if len(words) != 7 or None in places or words[4] not in ("+", "-") or not words[6].isascii():
        raise UserError(
            f"{path}: line {number} is no MAF row (s, source, start, size, + or -, the source's "
            "length, and the aligned bases); correct or remove it"
        )
    start, size, total = (place or 0 for place in places)
    if start + size > total:
        raise UserError(
            f"{path}: line {number}: {words[1]} is said to have {total} bases, but the row ends at "
            f"{start + size}; correct it"
        )
    return _Row(number, words[1], start, size, words[4], total, words[6].encode("ascii"))


def _project(projection: Projection, rows: list[_Row]) -> None:
    """Place what one block says of the reference, if anything."""
    path, reference = projection.path, projection.reference
    ours = [r for r in rows if r.source == reference or r.source.startswith(f"{reference}.")]
    if not ours:
        return
    if len(ours) > 1:
        raise UserError(
            f"{path}: line {ours[1].line} is a second row of {reference!r} in one block; project "
            "the alignment on its reference, each base once (maf_project or mafFilter do)"
        )
    (row,) = ours
    for other in rows:
        if len(other.text) != len(row.text):
            raise UserError(
                f"{path}: line {other.line} has {len(other.text)} columns, but line {row.line} of "
                f"the same block has {len(row.text)}; correct it"
            )
    text = np.frombuffer(row.text, dtype=np.uint8)
    columns = text != _GAP
    bases = text[columns]
    if len(bases) != row.size:
        raise UserError(
            f"{path}: line {row.line} says that it has {row.size} bases, but {len(bases)} follow; "
            "correct it"
        )
    others = b"".join(other.text for other in rows if other is not row)
    table = np.frombuffer(others, dtype=np.uint8).reshape(-1, len(text)) & _UPPER
    equal = np.count_nonzero(table == text & _UPPER, axis=0)[columns]
    unknown = np.full(row.size, np.nan, dtype=np.float32)
    identity = (equal / len(table)).astype(np.float32) if len(table) else unknown
    projection.place(row, bases, identity)
