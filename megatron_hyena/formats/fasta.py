"""Streaming FASTA reader: whole blocks at a time, never a line at a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_hyena.data.alphabet import AMINO_ACIDS, Bases, SequenceType, first_illegal
from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import read_blocks

_BLANKS = b"\r\n\t "
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class FastaPiece:
    """A stretch of one record: `bases` uint8 [n] from position `start` (0-based) on."""

    record: str
    start: int
    bases: Bases


def read_pieces(
    path: Path, block_bytes: int = 1 << 22, kind: SequenceType = SequenceType.DNA
) -> Iterator[FastaPiece]:
    """Yield the records of a FASTA file, plain or gzip, in order and in pieces.

    A record begins with the piece whose `start` is 0; its name is the first word of its header.
    Line ends (LF or CRLF), blank lines and blanks vanish; case and N are kept. No piece is longer
    than `block_bytes`, and memory holds a few blocks.

    Raises UserError for a file that is missing, empty, truncated or not FASTA, for a record
    without name or bases, two records of one name, and a character that is no letter of `kind`
    (its record and 1-based position named). All letters of DNA are letters of protein too, so DNA
    that is read as protein goes unnoticed; the other way round it does not.
    """
    parser = _Parser(path, kind)
    for block in read_blocks(path, block_bytes):
        yield from parser.feed(block)
    parser.finish()


def read_fasta(path: Path) -> Iterator[tuple[str, Bases]]:
    """Yield (name, bases uint8 [n]) of each record, whole; errors as `read_pieces`."""
    name, parts = "", list[Bases]()
    for piece in read_pieces(path):
        if piece.start == 0 and parts:
            yield name, np.concatenate(parts)
            parts = []
        name = piece.record
        parts.append(piece.bases)
    if parts:
        yield name, np.concatenate(parts)


class _Parser:
    """The state between two blocks: inside a header (its bytes so far) or inside a sequence."""

    def __init__(self, path: Path, kind: SequenceType) -> None:
        self.path = path
        self.kind = kind
        self.names: set[str] = set()
        self.record: str | None = None
        self.length = 0
        self.header: bytes | None = None
        self.at_line_start = True

    def feed(self, block: bytes) -> Iterator[FastaPiece]:
        """Yield the pieces that `block`, the next bytes of the file, completes."""
        at = 0
        while at < len(block):
            if self.header is not None:
                at = self._read_header(block, at)
                continue
            mark = block.find(b">", at)
            stop = mark if mark >= 0 else len(block)
            line = block[at:stop]
            if line:
                yield from self._read_sequence(line)
                self.at_line_start = line.endswith(b"\n")
            if mark >= 0:
                self._begin_header()
                stop += 1
            at = stop

    def finish(self) -> None:
        """Check the end of the file."""
        if self.header is not None:
            self._end_header()
        self._end_record()
        if self.record is None:
            raise UserError(f"{self.path} holds no sequence: it is empty; fetch it again")

    def _read_header(self, block: bytes, at: int) -> int:
        assert self.header is not None
        end = block.find(b"\n", at)
        self.header += block[at:] if end < 0 else block[at:end]
        if len(self.header) > _LONGEST_HEADER:
            raise UserError(f"{self.path} is not FASTA: a header line does not end within 1 MiB")
        if end < 0:
            return len(block)
        self._end_header()
        return end + 1

    def _begin_header(self) -> None:
        if not self.at_line_start and self.record is not None:
            raise self._illegal(">", self.length + 1)
        self._end_record()
        self.header = b""

    def _end_header(self) -> None:
        assert self.header is not None
        words = self.header.decode("utf-8", errors="replace").split(maxsplit=1)
        if not words:
            raise UserError(
                f"{self.path}: record {len(self.names) + 1} has no name after its '>'; give it one"
            )
        if words[0] in self.names:
            raise UserError(
                f"{self.path}: two records are named {words[0]!r}; rename or remove one of them"
            )
        self.names.add(words[0])
        self.record, self.length, self.header, self.at_line_start = words[0], 0, None, True

    def _end_record(self) -> None:
        if self.record is not None and self.length == 0:
            raise UserError(f"{self.path}: record {self.record!r} has no bases; remove it")

    def _read_sequence(self, lines: bytes) -> Iterator[FastaPiece]:
        sequence = lines.translate(None, _BLANKS)
        if not sequence:
            return
        if self.record is None:
            begin = sequence[:1].decode("latin-1")
            raise UserError(
                f"{self.path} is not FASTA: it begins with {begin!r} where a '>' belongs; "
                "give a FASTA file, plain or gzip"
            )
        stray = first_illegal(sequence, self.kind)
        if stray is not None:
            raise self._illegal(chr(sequence[stray]), self.length + stray + 1)
        yield FastaPiece(self.record, self.length, np.frombuffer(sequence, dtype=np.uint8))
        self.length += len(sequence)

    def _illegal(self, character: str, position: int) -> UserError:
        code, fix = "nucleotide", "correct or remove it"
        if not self.kind.is_nucleic:
            code = "amino-acid"
        elif character in AMINO_ACIDS:
            fix += ", or pass --type protein if these are amino acids"
        return UserError(
            f"{self.path}: record {self.record!r} holds {character!r} at position {position}, "
            f"which is no IUPAC {code} code; {fix}"
        )
