"""From what a user names, files, folders and globs, to files."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_hyena.errors import UserError

_FASTA = ("fasta", "fas", "fa", "fna", "ffn", "frn", "faa", "mpfa", "cf")
_FLAT = ("gb", "gbk", "gbff", "genbank", "embl")
SEQUENCE_ENDINGS = (*_FASTA, *_FLAT, "2bit", "maf")
"""Of the files that count as sequences in a folder; each may be followed by a `ZIP_ENDINGS`."""
ANNOTATION_ENDINGS = ("gff", "gff3", "gtf", "bed", *_FLAT)
TRACK_ENDINGS = ("bw", "bigwig", "bedgraph", "bdg", "bg")
ZIP_ENDINGS = ("gz", "bgz", "bgzf")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def locate(given: Sequence[str | Path], endings: Sequence[str]) -> list[Path]:
    """The files that are meant, in order and each once.

    A folder stands for the files right in it that have one of the `endings`, and a glob (`*`, `?`,
    `[…]`, `**` for folders at any depth) for what it matches, both sorted by name. A name that is
    a file's is that file's, whatever signs it holds; a file that does not exist is left for its
    reader to refuse. Raises UserError for a folder and a glob that stand for nothing, and for URLs.
    """
    files: dict[Path, None] = {}
    for one in map(Path, given):
        if _URL.match(str(one)):
            raise UserError(f"{one} is not on this machine; fetch it and name the copy")
        found = [one]
        if not one.exists() and glob.has_magic(str(one)):
            found = [Path(name) for name in sorted(glob.glob(str(one), recursive=True))]
            if not found:
                raise UserError(f"{one} matches no file; check the pattern")
        for path in found:
            files.update(dict.fromkeys(_in_folder(path, endings) if path.is_dir() else [path]))
    return list(files)


def without_endings(name: str, endings: Sequence[str] = SEQUENCE_ENDINGS) -> str:
    """A file's name without `.gz` and the like, and then without one of `endings`."""
    for some in (ZIP_ENDINGS, endings):
        stem, _, ending = name.rpartition(".")
        if stem and ending.lower() in some:
            name = stem
    return name


def _in_folder(folder: Path, endings: Sequence[str]) -> list[Path]:
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not path.name.startswith(".")
        and without_endings(path.name, ()) != without_endings(path.name, endings)
    ]
    if not found:
        raise UserError(
            f"{folder} is a folder without files that end in .{', .'.join(endings)} (or one of "
            "these and .gz); name the files in it"
        )
    return found
