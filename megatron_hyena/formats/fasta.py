"""Streaming FASTA reader: whole blocks at a time, never a line at a time, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import Digest, read_blocks
from megatron_hyena.formats.pieces import BLOCK, Piece, Records

_BLANKS = b"\r\n\t "
_LONGEST_HEADER = 1 << 20
_LINE_END = re.compile(rb"[\r\n]")
_FEW = 1 << 12
"""Bytes below which looking for the width of lines costs more than it saves."""


def read_pieces(
    path: Path,
    block_bytes: int = BLOCK,
    kind: SequenceType = SequenceType.DNA,
    digest: Digest | None = None,
) -> Iterator[Piece]:
    """Yield the records of a FASTA file, plain or gzip, in order and in pieces.

    A record begins with the piece whose `start` is 0; its name is the first word of its header.
    Line ends (LF, CRLF or CR), blank lines and blanks vanish; case and N are kept. No piece is
    longer than `block_bytes`, and memory holds a few blocks. `digest` is shown the bytes of the
    file as they lie on disk.

    Raises UserError for a file that is missing, empty, truncated or not FASTA, for a record
    without name or bases, two records of one name, and a character that is no letter of `kind`
    (its record and 1-based position named). All letters of DNA are letters of protein too, so DNA
    that is read as protein goes unnoticed; the other way round it does not.
    """
    parser = _Parser(path, kind)
    for block in read_blocks(path, block_bytes, digest):
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
        self.records = Records(path, kind)
        self.headers = 0
        self.header: bytes | None = None
        self.at_line_start = True

    def feed(self, block: bytes) -> Iterator[Piece]:
        """Yield the pieces that `block`, the next bytes of the file, completes."""
        at = 0
        while at < len(block):
            if self.header is not None:
                at = self._read_header(block, at)
                continue
            mark = block.find(b">", at)
            stop = mark if mark >= 0 else len(block)
            if stop > at:
                yield from self._read_sequence(block, at, stop)
                self.at_line_start = block[stop - 1] in b"\r\n"
            if mark >= 0:
                self._begin_header()
                stop += 1
            at = stop

    def finish(self) -> None:
        """Check the end of the file."""
        if self.header is not None:
            self._end_header()
        self.records.finish()

    def _read_header(self, block: bytes, at: int) -> int:
        assert self.header is not None
        found = _LINE_END.search(block, at)
        end = found.start() if found else len(block)
        self.header += block[at:end]
        if len(self.header) > _LONGEST_HEADER:
            raise UserError(
                f"{self.path} is not FASTA: the header of record {self.headers} does not end "
                "within 1 MiB; give a FASTA file"
            )
        if not found:
            return end
        self._end_header()
        return end + 1

    def _begin_header(self) -> None:
        if not self.at_line_start and self.records.name is not None:
            raise self.records.illegal(">", self.records.length + 1)
        self.records.end()
        self.header = b""
        self.headers += 1

    def _end_header(self) -> None:
        assert self.header is not None
        words = self.header.decode("utf-8", errors="replace").split(maxsplit=1)
        if not words:
            raise UserError(
                f"{self.path}: record {self.headers} has no name after its '>'; give it one"
            )
        self.records.begin(words[0])
        self.header, self.at_line_start = None, True

    def _read_sequence(self, block: bytes, start: int, stop: int) -> Iterator[Piece]:
        sequence = _without_line_ends(block, start, stop)
        if not len(sequence):
            return
        if self.records.name is None:
            raise UserError(
                f"{self.path} is not FASTA: it begins with {chr(sequence[0])!r} where a '>' "
                "belongs; give a FASTA file, plain or gzip"
            )
        yield self.records.piece(sequence)


def _without_line_ends(block: bytes, start: int, stop: int) -> Bases:
    """The bytes [start, stop) of `block` without blanks and line ends.

    Lines that all have the width of the second are copied as the rows of a table, at a tenth of
    the cost of looking at each byte; a byte that this leaves and that is no letter is looked for
    by whoever reads on, so here only line ends inside such rows are.
    """
    view = np.frombuffer(block, dtype=np.uint8)[start:stop]
    first = block.find(b"\n", start, stop) - start if stop - start > _FEW else -1
    second = block.find(b"\n", start + first + 1, stop) - start if first >= 0 else -1
    width = second - first
    if first < 0 or width < 2 or view[second - 1] in _BLANKS:
        return _without_blanks(view)
    rows = (len(view) - first - 1) // width
    table = view[first + 1 : first + 1 + rows * width].reshape(rows, width)
    tail = _without_blanks(view[first + 1 + rows * width :])
    kept = np.empty(first + rows * (width - 1) + len(tail), dtype=np.uint8)
    kept[:first] = view[:first]
    kept[first : first + rows * (width - 1)].reshape(rows, width - 1)[...] = table[:, :-1]
    kept[len(kept) - len(tail) :] = tail
    straight = bool((table[:, -1] == ord("\n")).all()) and int(kept.min()) > ord(" ")
    return kept if straight else _without_blanks(view)


def _without_blanks(view: Bases) -> Bases:
    return np.frombuffer(view.tobytes().translate(None, _BLANKS), dtype=np.uint8)
