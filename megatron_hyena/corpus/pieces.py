"""Which bases go to which tar file, decided before anything is written.

Contiguous bases of one split are cut into pieces, and pieces fill tar files in order, so that any
file can be written, or written again, without the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Portion:
    """Bases [start, end) of a record that go to one split."""

    sample: str
    """Name of the record's store among those of a corpus; empty where there is one store."""
    number: int
    """Of the record, among all records of all stores."""
    contig: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A sample of a tar file: bases [start, end) of a record."""

    key: str
    """Its name in the tar file."""
    sample: str
    contig: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The contig as the index names it: SAMPLE/CONTIG in a corpus of several stores."""
        return f"{self.sample}/{self.contig}" if self.sample else self.contig

    @property
    def length(self) -> int:
        """In bases."""
        return self.end - self.start


def cut_pieces(split: str, portions: Iterable[Portion], piece_length: int) -> Iterator[Piece]:
    """Pieces of at most `piece_length` bases that abut, in the order of the portions."""
    for portion in portions:
        for start in range(portion.start, portion.end, piece_length):
            key = f"{split}-{portion.number:06d}-{start:012d}"
            end = min(start + piece_length, portion.end)
            yield Piece(key, portion.sample, portion.contig, start, end)


def fill_shards(pieces: Iterable[Piece], shard_size: int) -> Iterator[Sequence[Piece]]:
    """The pieces of one tar file after another: at most `shard_size` bases, but one piece."""
    shard: list[Piece] = []
    size = 0
    for piece in pieces:
        if shard and size + piece.length > shard_size:
            yield shard
            shard, size = [], 0
        shard.append(piece)
        size += piece.length
    if shard:
        yield shard


def shard_name(number: int, *, compress: bool = False) -> str:
    """The tar file's name; numbers count from 0."""
    return f"shard-{number:06d}.tar{'.gz' if compress else ''}"
