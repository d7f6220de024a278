"""Numbers beside the bases, read from bedGraph (plain or gzip) and bigWig files.

Both give stretches of one value, 0-based and half-open. bedGraph: four columns, contig, start, end
and value (UCSC); a value `nan` says that nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.errors import UserError
from megatron_hyena.formats.bigwig import MAGIC, BigWig
from megatron_hyena.formats.compressed import read_lines
from megatron_hyena.formats.features import whole_number

_NO_ROWS = frozenset(("track", "browser"))
_WIGGLE = frozenset(("fixedStep", "variableStep"))
_ROWS_AT_ONCE = 1 << 18
_GREATEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Stretches:
    """Stretches [start, end) of one contig and the value of each, n of them, in any order."""

    contig: str
    starts: npt.NDArray[np.int64]
    """[n] 0-based"""
    ends: npt.NDArray[np.int64]
    """[n]"""
    values: npt.NDArray[np.float32]
    """[n] NaN where nothing is known"""


def check_track_file(path: Path) -> None:
    """Raise UserError where `path` cannot be opened: missing, or damaged at its beginning."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; check the path")
    if _is_bigwig(path):
        with BigWig(path):
            pass


def read_track_file(path: Path, contigs: Mapping[str, int]) -> Iterator[Stretches]:
    """Yield the stretches of a bedGraph or bigWig file, told apart by content.

    `contigs`: the genome's contigs and their lengths in bases. Raises UserError for a file that
    is missing, empty or damaged, a row that cannot be read, and a contig that the genome lacks or
    has in another length.
    """
    if path.is_file() and _is_bigwig(path):
        yield from _read_bigwig(path, contigs)
    else:
        yield from _read_bedgraph(path, contigs)


def _is_bigwig(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in MAGIC


# bedGraph ----------------------------------------------------------------------------------------

_Row = tuple[int, int, float]


def _read_bedgraph(path: Path, contigs: Mapping[str, int]) -> Iterator[Stretches]:
    contig, rows = "", list[_Row]()
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words or words[0].startswith("#") or words[0] in _NO_ROWS:
            continue
        if rows and (words[0] != contig or len(rows) == _ROWS_AT_ONCE):
            yield _stretches(contig, rows)
            rows = []
        contig = words[0]
        rows.append(_bedgraph_row(path, number, words, contigs))
    if rows:
        yield _stretches(contig, rows)


def _stretches(contig: str, rows: list[_Row]) -> Stretches:
    starts, ends, values = zip(*rows, strict=True)
    return Stretches(
        contig,
        np.array(starts, dtype=np.int64),
        np.array(ends, dtype=np.int64),
        np.array(values, dtype=np.float32),
    )


def _bedgraph_row(path: Path, number: int, words: list[str], contigs: Mapping[str, int]) -> _Row:
    if words[0] in _WIGGLE:
        raise UserError(
            f"{path}: row {number} is of a wiggle file; turn it into bedGraph or bigWig "
            "(UCSC's wigToBigWig does)"
        )
    value = _number(words[3]) if len(words) == 4 else None
    start, end = (whole_number(word) for word in words[1:3]) if value is not None else (None, None)
    if value is None or start is None or end is None:
        raise UserError(
            f"{path}: row {number} is no bedGraph row (contig, start and end as whole numbers, "
            "and a finite value or nan); correct or remove it"
        )
    length = _length_of(path, words[0], contigs)
    if not start < end <= length:
        raise UserError(
            f"{path}: row {number}: {start}..{end} does not lie within {words[0]!r}, which has "
            f"{length} bases; correct it or give the track of this very assembly"
        )
    return start, end, value


def _number(word: str) -> float | None:
    """The value as float32 can hold it, or None."""
    try:
        value = float(word)
    except ValueError:
        return None
    return None if abs(value) > _GREATEST else value


def _length_of(path: Path, contig: str, contigs: Mapping[str, int]) -> int:
    if contig not in contigs:
        known = ", ".join(map(repr, list(contigs)[:8]))
        more = f" and {len(contigs) - 8} more" if len(contigs) > 8 else ""
        raise UserError(
            f"{path}: the genome has no contig {contig!r} (it has {known}{more}); rename one "
            "side so that the names agree, or leave that contig out"
        )
    return contigs[contig]


# bigWig ------------------------------------------------------------------------------------------


def _read_bigwig(path: Path, contigs: Mapping[str, int]) -> Iterator[Stretches]:
    with BigWig(path) as file:
        for contig, length in file.contigs.values():
            if length != _length_of(path, contig, contigs):
                raise UserError(
                    f"{path}: {contig!r} has {length} bases there, but {contigs[contig]} in the "
                    "genome; give the track of this very assembly"
                )
        for contig, starts, ends, values in file.sections():
            kept = np.isfinite(values)
            if kept.any():
                yield Stretches(contig, starts[kept], ends[kept], values[kept])
