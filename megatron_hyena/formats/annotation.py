"""Features of a genome from GenBank, EMBL, GFF3, GTF or BED files, plain or gzip.

Formats are told apart by content. Only what labels bases is kept: type, place, strand, a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from megatron_hyena.errors import UserError
from megatron_hyena.formats.bed import bed_records, is_bed_row
from megatron_hyena.formats.compressed import read_lines
from megatron_hyena.formats.features import AnnotatedRecord
from megatron_hyena.formats.flatfile import flat_file_records, is_flat_file
from megatron_hyena.formats.gff import gff_records

_HEAD = ("#", "track ", "browser ")


def read_annotation(path: Path, kind: str = "") -> list[AnnotatedRecord]:
    """Read every record of an annotation file.

    `kind`: the type of what the file lists, for BED rows without blocks; else it must be empty.
    Raises UserError for a file that is missing, empty, truncated or of another format, and for a
    location or a row that cannot be read.
    """
    numbered = enumerate(read_lines(path), start=1)
    head, first = _until_first_row(numbered)
    if is_bed_row(first):
        return bed_records(path, chain(head, numbered), kind)
    if kind:
        raise UserError(
            f"{path} is no BED file, so it tells its features' types itself; leave out {kind}="
        )
    if is_flat_file(first):
        return flat_file_records(path, chain(head, numbered))
    if any(line.startswith("#") for _, line in head) or first.count("\t") >= 7:
        return gff_records(path, chain(head, numbered))
    raise UserError(
        f"{path} is neither GenBank, EMBL, GFF3, GTF nor BED: it begins with {first[:20]!r}; "
        "give one of these, plain or gzip"
    )


def _until_first_row(numbered: Iterator[tuple[int, str]]) -> tuple[list[tuple[int, str]], str]:
    """The lines up to the first that is no remark, and that line, else the first remark."""
    head: list[tuple[int, str]] = []
    for number, line in numbered:
        head.append((number, line))
        if line.strip() and not line.startswith(_HEAD):
            return head, line
    return head, next((line for _, line in head if line.strip()), "")
