"""The architecture string: what it expands to, and what it refuses, with the position."""

from __future__ import annotations

import doctest

import pytest

from megatron_hyena.config import SIGNS, parse_pattern, pattern
from megatron_hyena.errors import UserError


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("S", "S"),
        ("SMLHGAW", "SMLHGAW"),
        ("[SM]2", "SMSM"),
        ("[SM]1", "SM"),
        ("S[MA]2L", "SMAMAL"),
        ("[[SM]2A]2", "SMSMASMSMA"),
        ("[S[M]3]2", "SMMMSMMM"),
        ("[HA]6", "HA" * 6),
        ("[S]12", "S" * 12),
        ("[SMLSMLA]4", "SMLSMLA" * 4),
        (" S\tM \n L ", "SML"),
        ("[ S M ] 2", "SMSM"),
        ("[S] 3 A", "SSSA"),
    ],
)
def test_patterns(text: str, expanded: str) -> None:
    assert parse_pattern(text) == tuple(expanded)


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_pattern(text)
    message = str(caught.value)
    assert message.startswith(f"model.pattern {text!r}")
    return message


@pytest.mark.parametrize(
    ("text", "sign", "position"),
    [("X", "X", 1), ("SMx", "x", 3), ("[S?]2", "?", 3), ("S 2", "2", 3), ("[S]2 3", "3", 6)],
)
def test_an_unknown_sign_is_named_with_its_position_and_the_valid_ones(
    text: str, sign: str, position: int
) -> None:
    message = refused(text)
    assert f"unknown sign {sign!r} at position {position};" in message
    assert message.endswith(
        f"valid signs are {' '.join(SIGNS)}, [ ]n for repeats and ( ) for merged stages"
    )


@pytest.mark.parametrize(
    ("text", "position"), [("[SM", 1), ("S[M", 2), ("[S[M]2", 1), ("[S [M", 4), ("[", 1)]
)
def test_an_open_bracket_is_named_with_its_position(text: str, position: int) -> None:
    assert f"the '[' at position {position} is never closed" in refused(text)


@pytest.mark.parametrize(("text", "position"), [("]", 1), ("SM]2", 3), ("[S]2]3", 5)])
def test_a_surplus_bracket_is_named_with_its_position(text: str, position: int) -> None:
    assert f"the ']' at position {position} closes nothing" in refused(text)


@pytest.mark.parametrize(
    ("text", "position"), [("[SM]", 4), ("[SM]A", 4), ("[S]0", 3), ("[[S]M]2", 4), ("[S]-1", 3)]
)
def test_a_bracket_without_repeats_is_named_with_its_position(text: str, position: int) -> None:
    message = refused(text)
    assert f"the bracket closed at position {position} needs a number of repeats" in message


@pytest.mark.parametrize("text", ["", "  ", "[]2"])
def test_a_pattern_without_layers_is_refused(text: str) -> None:
    assert "has no layer" in refused(text)


def test_examples_of_the_documentation() -> None:
    found = doctest.testmod(pattern)
    assert found.attempted > 0
    assert found.failed == 0
