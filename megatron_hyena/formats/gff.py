"""Features from GFF3 (specification 1.26) and GTF rows: nine columns set apart by tabs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from megatron_hyena.errors import UserError
from megatron_hyena.formats.features import AnnotatedRecord, Feature, Interval, whole_number

_STRANDS = {"+": 1, "-": -1, ".": 0, "?": 0}
_NAME = re.compile(r"(?:^|;)\s*(?:ID|Name|gene_id|transcript_id|name)[ =]\"?([^;\"]+)")


def gff_records(path: Path, lines: Iterable[tuple[int, str]]) -> list[AnnotatedRecord]:
    """One record for each sequence that the rows name, in order of appearance.

    `lines`: (number, text). Raises UserError for a row that cannot be read, and for no rows.
    """
    features: dict[str, list[Feature]] = {}
    lengths: dict[str, int] = {}
    circular: set[str] = set()
    for number, line in lines:
        if line.startswith("##FASTA"):
            break
        if line.startswith("##sequence-region"):
            words = line.split()
            length = whole_number(words[3]) if len(words) == 4 and words[2] == "1" else None
            if length is not None:
                lengths[unquote(words[1])] = length
        elif line.strip() and not line.startswith("#"):
            record, feature, attributes = _row(path, number, line)
            features.setdefault(record, []).append(feature)
            if "Is_circular=true" in attributes:
                circular.add(record)
    if not features:
        raise UserError(f"{path} holds no GFF3 feature rows; give another file or leave it out")
    return [
        AnnotatedRecord(path, (name,), lengths.get(name), name in circular, tuple(found))
        for name, found in features.items()
    ]


def _row(path: Path, number: int, line: str) -> tuple[str, Feature, str]:
    """The record's name, the feature, and the ninth column of one row."""
    columns = line.split("\t")
    places = [whole_number(column.strip()) for column in columns[3:5]]
    if len(columns) not in (8, 9) or len(places) != 2 or None in places:
        raise UserError(
            f"{path}: row {number} is no GFF3 row (nine columns set apart by tabs, the fourth and "
            "fifth whole numbers); correct or remove it"
        )
    if columns[6].strip() not in _STRANDS:
        raise UserError(
            f"{path}: row {number}: {columns[6]!r} is no strand; write +, -, . or ? there"
        )
    attributes = columns[8] if len(columns) == 9 else ""
    start, end = (place or 0 for place in places)
    found = _NAME.search(attributes)
    name = unquote(found[1]) if found else ""
    if end < start:
        raise UserError(
            f"{path}: row {number}: {columns[2]} {name!r} ends before it starts; correct it"
        )
    interval = Interval(start - 1, end, _STRANDS[columns[6].strip()])
    feature = Feature(sys.intern(columns[2].strip()), name, (interval,))
    return unquote(columns[0].strip()), feature, attributes
