"""The architecture as a string: which mixer each block has.

    S M L     Hyena-SE, Hyena-MR, Hyena-LI      A W    attention, sliding-window attention
    H         order-N Hyena, implicit filter    [...]n n repeats (may be nested)

White space is ignored.

>>> parse_pattern("S[MA]2")
('S', 'M', 'A', 'M', 'A')
"""

from __future__ import annotations

import re
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


def parse_pattern(pattern: str) -> tuple[str, ...]:
    """Expand `pattern` to one sign per block.

    Raises:
        UserError: an unknown sign or an unbalanced bracket, with its position (from 1).
    """
    signs, end = _parse(pattern, 0, depth=0)
    assert end == len(pattern)
    if not signs:
        raise UserError(f"model.pattern {pattern!r} has no layer; write one, such as [SMLA]2")
    return tuple(signs)


def _parse(pattern: str, position: int, depth: int) -> tuple[list[str], int]:
    signs: list[str] = []
    opened_at = position
    while position < len(pattern):
        sign = pattern[position]
        if sign.isspace():
            position += 1
        elif sign in SIGNS:
            signs.append(sign)
            position += 1
        elif sign == "[":
            inner, position = _parse(pattern, position + 1, depth + 1)
            repeats = re.compile(r"\s*(\d+)").match(pattern, position)
            if repeats is None or int(repeats[1]) < 1:
                raise UserError(
                    f"model.pattern {pattern!r}: the bracket closed at position {position} "
                    "needs a number of repeats behind it, such as [SM]2"
                )
            signs += inner * int(repeats[1])
            position = repeats.end()
        elif sign == "]" and depth:
            return signs, position + 1
        elif sign == "]":
            raise UserError(
                f"model.pattern {pattern!r}: the ']' at position {position + 1} closes nothing; "
                "remove it or add a '['"
            )
        else:
            raise UserError(
                f"model.pattern {pattern!r}: unknown sign {sign!r} at position {position + 1}; "
                f"valid signs are {' '.join(SIGNS)} and [ ]n"
            )
    if depth:
        raise UserError(
            f"model.pattern {pattern!r}: the '[' at position {opened_at} is never closed; "
            "add a ']' and a number of repeats"
        )
    return signs, position
