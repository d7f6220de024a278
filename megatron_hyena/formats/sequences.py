"""Sequences from FASTA, 2bit, GenBank and EMBL files, told apart by content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats import fasta, flatfile, maf, twobit
from megatron_hyena.formats.compressed import Digest, read_start
from megatron_hyena.formats.pieces import BLOCK, Piece


def sequence_format(path: Path) -> str:
    """`fasta`, `2bit`, `flat` (GenBank or EMBL) or `maf`, by the first bytes of the contents.

    What is none of the others counts as FASTA, whose reader says what it finds instead. Raises
    UserError where the file is missing, empty or damaged.
    """
    start = read_start(path)
    if start[:4] in twobit.MAGIC:
        with path.open("rb") as file:
            if file.read(4) != start[:4]:
                raise UserError(f"{path} is 2bit within gzip; unzip it first")
        return "2bit"
    if flatfile.is_flat_file(start.lstrip()[:6]):
        return "flat"
    return "maf" if maf.is_maf(start) else "fasta"


def read_sequences(
    path: Path,
    block_bytes: int = BLOCK,
    kind: SequenceType = SequenceType.DNA,
    digest: Digest | None = None,
) -> Iterator[Piece]:
    """Yield the records of a sequence file in order and in pieces of at most `block_bytes` bases.

    `digest` is shown the bytes of the file as they lie on disk. Raises UserError as the reader of
    the file's format does, and for MAF, which `maf.project_maf` reads.
    """
    found = sequence_format(path)
    if found == "maf":
        raise UserError(f"{path} is MAF; turn it into a genome store by tools.prepare_genome first")
    if found == "2bit":
        return twobit.read_twobit(path, block_bytes, kind, digest)
    if found == "flat":
        return flatfile.read_flat_file(path, block_bytes, kind, digest)
    return fasta.read_pieces(path, block_bytes, kind, digest)
