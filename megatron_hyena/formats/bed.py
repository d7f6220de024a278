"""Features from BED rows of 3 to 12 columns (UCSC): 0-based, half-open.

A row with blocks (BED12) is a transcript and becomes a `gene` over its whole extent, an `exon` of
its blocks, and a `CDS` of what of them lies between thickStart and thickEnd, where these differ.
A row without blocks is one stretch, of a type that BED does not tell: the caller gives it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from megatron_hyena.errors import UserError
from megatron_hyena.formats.features import AnnotatedRecord, Feature, Interval, whole_number

_STRANDS = {"+": 1, "-": -1, ".": 0, "": 0}
_NO_ROWS = frozenset(("track", "browser"))
_BLOCKED = 12


def is_bed_row(line: str) -> bool:
    """Whether a line has a second and a third column of whole numbers, as no GFF row has."""
    columns = _columns(line)
    return len(columns) >= 3 and None not in map(whole_number, columns[1:3])


def bed_records(
    path: Path, lines: Iterable[tuple[int, str]], kind: str = ""
) -> list[AnnotatedRecord]:
    """One record for each sequence that the rows name, in order of appearance.

    `lines`: (number, text). `kind`: the type of rows without blocks. Raises UserError for a row
    that cannot be read, for one without blocks where no `kind` is given, and for no rows.
    """
    features: dict[str, list[Feature]] = {}
    for number, line in lines:
        if not line.strip() or line.startswith("#") or line.split()[0] in _NO_ROWS:
            continue
        try:
            contig, found = _row(_columns(line), kind)
        except ValueError as error:
            raise UserError(f"{path}: row {number} {error}") from error
        features.setdefault(contig, []).extend(found)
    if not features:
        raise UserError(f"{path} holds no BED rows; give another file or leave it out")
    return [
        AnnotatedRecord(path, (name,), None, False, tuple(found))
        for name, found in features.items()
    ]


def _columns(line: str) -> list[str]:
    return [c.strip() for c in line.split("\t")] if "\t" in line else line.split()


def _row(columns: list[str], kind: str) -> tuple[str, list[Feature]]:
    """The contig and the features of one row; raises ValueError."""
    places = [whole_number(column) for column in columns[1:3]]
    if not 3 <= len(columns) <= _BLOCKED or None in places or not columns[0]:
        raise ValueError(
            "is no BED row (3 to 12 columns, the second and third whole numbers); correct or "
            "remove it"
        )
    start, end = (place or 0 for place in places)
    if end <= start:
        raise ValueError(f"ends at {end}, which is not behind its start {start}; correct it")
    name = columns[3] if len(columns) > 3 else ""
    sign = columns[5] if len(columns) > 5 else ""
    if sign not in _STRANDS:
        raise ValueError(f"has the strand {sign!r}; write +, - or . there")
    strand = _STRANDS[sign]
    if len(columns) == _BLOCKED:
        return columns[0], _transcript(columns, name, start, end, strand)
    if not kind:
        raise ValueError(
            "has no blocks, so BED does not tell what it is; give the file as TYPE=FILE, such as "
            "repeat_region=FILE or CDS=FILE"
        )
    return columns[0], [Feature(kind, name, (Interval(start, end, strand),))]


def _transcript(columns: list[str], name: str, start: int, end: int, strand: int) -> list[Feature]:
    """The features of a row with blocks; raises ValueError."""
    thick = [whole_number(column) for column in columns[6:8]]
    sizes, begins = (
        [whole_number(word) for word in column.rstrip(",").split(",")] for column in columns[10:12]
    )
    count = whole_number(columns[9])
    if None in (*thick, *sizes, *begins) or not count == len(sizes) == len(begins):
        raise ValueError(
            "has thick ends or blocks that are no whole numbers, or not as many blocks as its "
            "tenth column says; correct or remove it"
        )
    blocks = [
        (start + (begin or 0), start + (begin or 0) + (size or 0))
        for begin, size in zip(begins, sizes, strict=True)
    ]
    if any(not a < b <= end for a, b in blocks):
        raise ValueError(f"has blocks that are empty or lie outside {start}..{end}; correct it")
    low, high = (place or 0 for place in thick)
    coding = [(max(a, low), min(b, high)) for a, b in blocks if max(a, low) < min(b, high)]
    stretches = {"gene": [(start, end)], "exon": blocks, "CDS": coding}
    return [
        Feature(kind, name, tuple(Interval(a, b, strand) for a, b in some))
        for kind, some in stretches.items()
        if some
    ]
