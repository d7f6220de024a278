"""The architecture as a string: which mixer each block has.

    S M L     Hyena-SE, Hyena-MR, Hyena-LI      A W    attention, sliding-window attention
    H G       order-N Hyena; with genomic branches [...]n n repeats (may be nested)
    (...)r    a merged stage: of its input positions the fraction r is merged away inside (without
              r: `merge_ratio` of the model section); may be nested

White space is ignored.

>>> parse_pattern("S[MA]2")
('S', 'M', 'A', 'M', 'A')
>>> parse_layout("S(L)0.5").items
(0, Stage(number=0, items=(1,), merge_ratio=0.5, depth=0))
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class Sign:
    """One kind of layer: where its class is, and what it is called."""

    layer: str
    """`module:Class` of the mixer, imported only when a model is built."""
    name: str
    exchanges: tuple[str, ...] = ()
    """How the layer exchanges data when the sequence is split over context-parallel ranks, best
    first; empty for a layer that needs the whole sequence."""


SIGNS: dict[str, Sign] = {
    "S": Sign(
        "megatron_hyena.layers.striped:HyenaSE",
        "Hyena-SE, short explicit filter",
        ("halo", "all_to_all"),
    ),
    "M": Sign(
        "megatron_hyena.layers.striped:HyenaMR",
        "Hyena-MR, 128 decayed taps",
        ("halo", "all_to_all"),
    ),
    "L": Sign(
        "megatron_hyena.layers.striped:HyenaLI",
        "Hyena-LI, long modal filter",
        ("state", "all_to_all"),
    ),
    "H": Sign(
        "megatron_hyena.layers.hyena_order:HyenaOperator", "Hyena of order N", ("all_to_all",)
    ),
    "G": Sign(
        "megatron_hyena.layers.genomic:GenomicHyenaOperator",
        "Hyena of order N with genomic branches",
        ("all_to_all",),
    ),
    "A": Sign(
        "megatron_hyena.layers.attention:Attention",
        "causal attention with RoPE",
        ("all_to_all", "all_gather"),
    ),
    "W": Sign(
        "megatron_hyena.layers.attention:WindowAttention", "sliding-window attention", ("halo",)
    ),
}


def chooses(choice: str, sign: str) -> bool:
    """Whether `choice` (`none`, `block` for all, or signs such as `SM`) means blocks of `sign`."""
    return choice == "block" or (choice != "none" and sign in choice)


@dataclass(frozen=True)
class Stage:
    """A merged stage `( ... )` of the pattern.

    Attributes:
        number: stages are numbered by the order of their opening brackets.
        items: block numbers, and stages inside.
        merge_ratio: the number behind the closing bracket; None without one.
        depth: stages around it.
    """

    number: int
    items: tuple[int | Stage, ...]
    merge_ratio: float | None
    depth: int


@dataclass(frozen=True)
class Layout:
    """A parsed pattern.

    Attributes:
        signs: of all blocks, in order; block numbers are places in it.
        items: the way of the data: block numbers and stages.
    """

    signs: tuple[str, ...]
    items: tuple[int | Stage, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, by number."""
        return tuple(sorted(_stages_in(self.items), key=lambda stage: stage.number))


def _stages_in(items: tuple[int | Stage, ...]) -> list[Stage]:
    found = []
    for item in items:
        if isinstance(item, Stage):
            found += [item, *_stages_in(item.items)]
    return found


def parse_pattern(pattern: str) -> tuple[str, ...]:
    """Expand `pattern` to one sign per block, brackets of stages left out."""
    return parse_layout(pattern).signs


def parse_layout(pattern: str) -> Layout:
    """Expand `pattern` to its blocks and stages.

    Raises:
        UserError: an unknown sign, an unbalanced or empty bracket, with its position (from 1).
    """
    parser = _Parser(pattern)
    parts = parser.parts("", 0)
    signs: list[str] = []
    items = _number(parts, signs, itertools.count())
    if not signs:
        raise UserError(f"model.pattern {pattern!r} has no layer; write one, such as [SMLA]2")
    return Layout(tuple(signs), items)


@dataclass(frozen=True)
class _Merged:
    """A stage before numbering."""

    parts: list[str | _Merged]
    merge_ratio: float | None


def _number(
    parts: list[str | _Merged], signs: list[str], count: Iterator[int], depth: int = 0
) -> tuple[int | Stage, ...]:
    items: list[int | Stage] = []
    for part in parts:
        if isinstance(part, _Merged):
            number = next(count)
            inside = _number(part.parts, signs, count, depth + 1)
            items.append(Stage(number, inside, part.merge_ratio, depth))
        else:
            items.append(len(signs))
            signs.append(part)
    return tuple(items)


CLOSING = {"[": "]", "(": ")"}


class _Parser:
    """Recursive descent over the signs; `at` is the place in the text."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def fail(self, message: str) -> UserError:
        return UserError(f"model.pattern {self.pattern!r}: {message}")

    def parts(self, closing: str, opened_at: int) -> list[str | _Merged]:
        """What stands up to `closing` (empty: the end of the text)."""
        parts: list[str | _Merged] = []
        while self.at < len(self.pattern):
            sign = self.pattern[self.at]
            self.at += 1
            if sign.isspace():
                continue
            if sign == closing:
                return parts
            if sign in SIGNS:
                parts.append(sign)
            elif sign == "[":
                inner = self.parts("]", self.at)
                parts += inner * self.repeats()
            elif sign == "(":
                parts.append(self.stage())
            elif sign in "])":
                raise self.fail(
                    f"the {sign!r} at position {self.at} closes nothing; remove it or add a "
                    f"{'[' if sign == ']' else '('!r}"
                )
            else:
                raise self.fail(
                    f"unknown sign {sign!r} at position {self.at}; valid signs are "
                    f"{' '.join(SIGNS)}, [ ]n for repeats and ( ) for merged stages"
                )
        if closing:
            more = " and a number of repeats" if closing == "]" else ""
            opening = {"]": "[", ")": "("}[closing]
            raise self.fail(
                f"the {opening!r} at position {opened_at} is never closed; add a {closing!r}{more}"
            )
        return parts

    def repeats(self) -> int:
        """The number behind a `]`."""
        closed_at = self.at
        found = self.number(r"\d+")
        if found is None or int(found) < 1:
            raise self.fail(
                f"the bracket closed at position {closed_at} needs a number of repeats behind it, "
                "such as [SM]2"
            )
        return int(found)

    def stage(self) -> _Merged:
        """The rest of a stage, whose bracket was just read."""
        opened_at = self.at
        inner = self.parts(")", opened_at)
        if not inner:
            raise self.fail(
                f"the '(' at position {opened_at} holds no layer; write one, such as (S)"
            )
        ratio = self.number(r"\d*\.?\d+")
        if ratio is not None and not 0 <= float(ratio) < 1:
            raise self.fail(
                f"merge ratio {ratio} behind the ')' at position {self.at - len(ratio)} is not in "
                "[0, 1); it is the fraction of positions removed"
            )
        return _Merged(inner, None if ratio is None else float(ratio))

    def number(self, form: str) -> str | None:
        """The number at the present place, if one stands there."""
        found = re.compile(rf"\s*({form})").match(self.pattern, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found[1]
