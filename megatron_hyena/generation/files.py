"""Prompts and proteins from files, and the FASTA file of what was written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_hyena.data.alphabet import SequenceType, first_illegal
from megatron_hyena.errors import UserError
from megatron_hyena.formats.compressed import read_start
from megatron_hyena.formats.sequences import read_sequences
from megatron_hyena.generation.writing import Written

LINE = 60
"""Letters in a line of FASTA."""


def read_prompts(path: Path, kind: SequenceType) -> list[tuple[str, str]]:
    """(name, sequence) of a sequence file, or of a text file with one sequence in each line.

    Lines of text are called `prompt_1` and so on; blank ones are left out.

    Raises:
        UserError: the file cannot be read, holds nothing, or a letter that is none of `kind`.
    """
    start = read_start(path).lstrip()
    if start[:1].isalpha() and not start.startswith((b"LOCUS", b"ID ", b"##maf")):
        return list(_lines(path, kind))
    parts: dict[str, list[bytes]] = {}
    for piece in read_sequences(path, kind=kind):
        parts.setdefault(piece.record, []).append(piece.bases.tobytes())
    return [(name, b"".join(found).decode("ascii")) for name, found in parts.items()]


def _lines(path: Path, kind: SequenceType) -> Iterator[tuple[str, str]]:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is neither FASTA nor plain text of letters: {error}") from error
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(filter(None, lines), start=1):
        check_letters(line, kind, f"{path}: prompt_{number}")
        yield f"prompt_{number}", line


def check_letters(sequence: str, kind: SequenceType, name: str) -> None:
    """Refuse what is no letter of `kind`.

    Raises:
        UserError: with the letter and its place.
    """
    found = sequence.encode("utf-8")
    if (at := first_illegal(found, kind)) is not None:
        letter = found[at : at + 1].decode("latin-1")
        raise UserError(f"{name}: {letter!r} at position {at + 1} is no letter of {kind.name}")


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a file that exists, unless it is to be replaced.

    Raises:
        UserError: it does, or its folder does not.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; pass --overwrite to replace it")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first")


def write_fasta(path: Path, sequences: Iterable[Written], with_prompt: bool = False) -> int:
    """Write sequences as they come; the file appears when all are there. Their number.

    Headers tell the letters of prompt and of what was written, how it ended, and its mean nats.
    """
    partial, count = path.with_name(f".{path.name}.partial"), 0
    try:
        with partial.open("w", encoding="ascii") as file:
            for one in sequences:
                said = f"prompt={len(one.prompt)} written={len(one.text)} end={one.end}"
                file.write(f">{one.name} {said} nats={one.nats:.4f}\n")
                text = one.prompt + one.text if with_prompt else one.text
                lines = (text[at : at + LINE] for at in range(0, len(text), LINE))
                file.write("\n".join(lines) + "\n")
                count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count
