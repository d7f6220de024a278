"""Locations of the INSDC feature table (its definition, section 3.4): `complement(3..9)`."""

from __future__ import annotations

import re

from megatron_hyena.formats.features import Interval

_POSITION = r"[<>]?(?:([0-9]{1,15})|\(([0-9]{1,15})\.([0-9]{1,15})\))"
_SPAN = re.compile(rf"{_POSITION}(?:\.\.{_POSITION})?")
_BETWEEN = re.compile(r"[0-9]+\^[0-9]+")
_NESTED = re.compile(r"(join|order|complement)\((.*)\)")
_DEEPEST = 20


def parse_location(text: str, depth: int = 0) -> list[Interval]:
    """Read a location such as `complement(join(<1..5,8..>9))`; raises ValueError.

    `<` and `>` (the feature goes on beyond) are dropped, of `(3.5)` the outermost base is taken.
    """
    text = "".join(text.split())
    nested = _NESTED.fullmatch(text)
    if nested and depth < _DEEPEST:
        operator, inner = nested.groups()
        parts = _split_at_commas(inner)
        intervals = [i for part in parts for i in parse_location(part, depth + 1)]
        if operator == "complement":
            return [interval._replace(strand=-interval.strand) for interval in intervals]
        return intervals
    if _BETWEEN.fullmatch(text):
        return []
    record, colon, there = text.rpartition(":")
    span = _SPAN.fullmatch(there)
    if span is None:
        raise ValueError(f"the location {_shortened(text)} cannot be read; correct it")
    if colon and record:
        return []
    one, low, _, other, _, high = span.groups()
    start = int(one or low)
    end = int(other or high or one or span[3])
    if end < start:
        raise ValueError(f"the location {_shortened(text)} ends before it starts; correct it")
    return [Interval(start - 1, end, 1)]


def _shortened(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}…")


def _split_at_commas(text: str) -> list[str]:
    """Split at the commas that stand outside all brackets."""
    parts, depth, begin = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[begin:index])
            begin = index + 1
    return [*parts, text[begin:]]
