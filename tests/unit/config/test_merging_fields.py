"""The fields of merging: what contradicts is refused with both numbers; windows, slots, shares."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.merging import (
    CHOICES,
    block_shares,
    merging_multiple,
    stage_shapes,
    stage_shares,
)
from megatron_hyena.errors import UserError


def refused(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        HyenaGLTConfig(**{"pattern": "S(M)S", **changes})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"merge_ratio": 1.0}, ["model.merge_ratio=1.0", "[0, 1)"]),
        ({"merge_ratio": -0.1}, ["model.merge_ratio=-0.1", "[0, 1)"]),
        ({"merge_ratio": math.nan}, ["model.merge_ratio=nan", "[0, 1)"]),
        ({"threshold": 0.0}, ["model.threshold=0.0", "(0, 1)"]),
        ({"threshold": 1.0}, ["model.threshold=1.0", "(0, 1)"]),
        ({"threshold": math.nan}, ["model.threshold=nan", "(0, 1)"]),
        ({"window": 1}, ["model.window=1", "2 or more"]),
        ({"router_temperature": 0.0}, ["model.router_temperature=0.0", "greater than 0"]),
        ({"slots": -1}, ["model.slots=-1", "0 or more"]),
        ({"gamma": -2.0}, ["model.gamma=-2.0", "0 or more"]),
        ({"ratio_weight": -0.5}, ["model.ratio_weight=-0.5", "0 or more"]),
        ({"controller_eta": 0.0}, ["model.controller_eta=0.0", "(0, 1]"]),
        ({"controller_eta": 1.5}, ["model.controller_eta=1.5", "(0, 1]"]),
        ({"complexity": "global"}, ["model.complexity=global", "causal", "window or kmer"]),
        ({"slots": 129}, ["model.slots=129", "model.window=128"]),
        ({"slots": 10}, ["model.slots=10", "merge_ratio 0.5", "128", "64.0 chunks"]),
        (
            {"slots": 40, "merge_ratio": 2 / 3, "window": 128},
            ["model.slots=40", "0.666", "42.7 chunks", "128"],
        ),
        (
            {"adaptive": True, "complexity": "kmer", "window": 40},
            ["model.window=40", "multiple of 16"],
        ),
        (
            {"merger": "static", "window": 8, "merge_ratio": 0.3},
            ["merge_ratio 0.3", "model.window=8", "5.60", "merger=static"],
        ),
        ({"pattern": "S(M)0.9S", "slots": 20, "window": 32}, []),
        ({"pattern": "S(M)0.2S", "slots": 20, "window": 32}, ["slots=20", "0.2", "25.6", "32"]),
    ],
)
def test_what_contradicts_is_refused_with_both_numbers(
    changes: dict[str, Any], named: list[str]
) -> None:
    if not named:  # the stage's own ratio counts, not the model's
        HyenaGLTConfig(**changes)
        return
    message = refused(**changes)
    for part in named:
        assert part in message


NO_STAGE = {"pattern": "SMS"}
DEFAULT = {"pattern": HyenaGLTConfig().pattern}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({**DEFAULT, "adaptive": True}, ["model.adaptive=True", "model.pattern=[SMLA]2", "( )"]),
        ({**DEFAULT, "merger": "precomputed"}, ["model.merger=precomputed", "[SMLA]2", "( )"]),
        ({**DEFAULT, "merge_ratio": 0.9}, ["model.merge_ratio=0.9", "[SMLA]2", "( )"]),
        ({**NO_STAGE, "gamma": 9.0}, ["model.gamma=9.0", "model.adaptive=false"]),
        ({"merger": "hnet", "merge_fn": "mean"}, ["model.merge_fn=mean", "hnet", "at linear"]),
        ({"merger": "static", "router_input": "trunk"}, ["router_input=trunk", "static", "router"]),
        ({"merger": "static", "threshold": 0.3}, ["model.threshold=0.3", "static", "at 0.5"]),
        ({"merger": "static", "similarity": "cosine"}, ["model.similarity=cosine", "static"]),
        ({"merger": "static", "router_temperature": 2.0}, ["router_temperature=2.0", "static"]),
        ({"merger": "static", "controller_eta": 0.5}, ["controller_eta=0.5", "static"]),
        ({"merger": "precomputed", "ratio_weight": 0.5}, ["ratio_weight=0.5", "precomputed"]),
        (
            {"complexity": "global", "causal": False},
            ["model.complexity=global", "adaptive=false", "at kmer"],
        ),
        ({"gamma": 9.0}, ["model.gamma=9.0", "model.adaptive=false", "at 2.0"]),
        ({"ratio_loss": "none", "ratio_weight": 1.0}, ["ratio_weight=1.0", "ratio_loss=none"]),
        ({"merger": "static", "adaptive": True}, ["model.adaptive=true", "static"]),
        ({"merger": "static", "slots": 64}, ["model.slots=64", "static"]),
    ],
)
def test_what_would_do_nothing_is_refused_with_what_ignores_it(
    changes: dict[str, Any], named: list[str]
) -> None:
    message = refused(**changes)
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    "changes",
    [
        {"merger": "static", "smoothing": "none", "ratio_loss": "none"},
        {"merger": "precomputed", "ratio_weight": 0.0, "merge_fn": "mean", "slots": 70},
        {"merger": "hnet", "merge_fn": "select", "similarity": "cosine", "threshold": 0.3},
        {"ratio_loss": "none", "ratio_weight": 0.0, "gamma": 0.0},
        {"adaptive": True, "complexity": "kmer", "gamma": 9.0},
        # The model without merging, by another pattern alone.
        {**NO_STAGE, "merge_ratio": 0.9, "window": 64, "slots": 40, "router_input": "trunk"},
        {**NO_STAGE, "adaptive": True, "gamma": 3.0},
        {**NO_STAGE, "merger": "precomputed"},
        {**NO_STAGE, "threshold": 0.1, "merge_fn": "mean", "smoothing": "none"},
    ],
)
def test_what_says_so_anyway_and_what_another_pattern_leaves_over_may_stay(
    changes: dict[str, Any],
) -> None:
    config = HyenaGLTConfig(**{"pattern": "S(M)S", **changes})
    for name, value in changes.items():
        assert getattr(config, name) == value


@pytest.mark.parametrize("field", CHOICES)
def test_an_unknown_choice_is_refused_with_the_known_ones(field: str) -> None:
    message = refused(**{field: "nearest"})
    assert f"model.{field}='nearest'" in message
    for choice in CHOICES[field]:
        assert choice in message


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("S(M)1S", "merge ratio 1 "),
        ("S(M)1.5S", "merge ratio 1.5 "),
        ("S()S", "holds no layer"),
        ("S(MS", "never closed"),
        ("SM)S", "closes nothing"),
        ("S(M]2S", "closes nothing"),
    ],
)
def test_stages_that_are_no_stages_are_refused(pattern: str, part: str) -> None:
    assert part in refused(pattern=pattern)


@pytest.mark.parametrize("window", [8, 16, 63, 64, 128, 1000])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 2 / 3, 5 / 6, 0.85])
def test_a_window_has_slots_for_two_standard_deviations_more_than_expected(
    window: int, ratio: float
) -> None:
    """Of a count of independent openings; no more than positions, eights in large windows."""
    config = HyenaGLTConfig(pattern="S(M)S", window=window, merge_ratio=ratio)
    (shape,) = stage_shapes(config)
    assert (shape.window, shape.merge_ratio) == (window, ratio)
    assert shape.keep == pytest.approx(1 - ratio)
    expected = window * (1 - ratio)
    enough = expected + 2 * math.sqrt(window * ratio * (1 - ratio))
    assert shape.slots == window or enough <= shape.slots < enough + (8 if window >= 64 else 1)
    assert shape.slots % 8 == 0 or window < 64 or shape.slots == window


def test_shapes_of_nested_stages_and_of_static_ones() -> None:
    """A stage's own ratio goes before the model's; `slots` is for all; static keeps exactly."""
    nested = HyenaGLTConfig(pattern="S(S(M)0.75S)S(L)0S", window=16, merge_ratio=0.5)
    assert [s.merge_ratio for s in stage_shapes(nested)] == [0.5, 0.75, 0.0]
    assert [s.slots for s in stage_shapes(nested)] == [12, 8, 16]
    given = HyenaGLTConfig(pattern="(S(M))", window=16, slots=9)
    assert [s.slots for s in stage_shapes(given)] == [9, 9]
    static = HyenaGLTConfig(pattern="(S(M)0.75)", window=16, merger="static")
    assert [s.slots for s in stage_shapes(static)] == [8, 4]


NESTED: list[tuple[str, dict[str, Any], int]] = [
    ("SMLA", {}, 1),
    ("S(M)S", {"window": 24}, 24),
    ("S(M)S(L)", {"window": 24}, 24),
    ("(S(M))", {"window": 16, "slots": 12}, 64),
    ("(S(M))", {"window": 16, "slots": 8}, 32),
    ("(S(M))", {"window": 16, "slots": 16}, 16),
    ("(S(M(L)))", {"window": 16, "slots": 8}, 64),
    ("(S(M(L)))", {"window": 16, "slots": 12}, 256),
    ("(S(M)0.75)0.5(L)", {"window": 16, "merger": "static"}, 32),
]


@pytest.mark.parametrize(("pattern", "changes", "multiple"), NESTED)
def test_the_multiple_is_the_shortest_length_of_whole_windows_in_every_stage(
    pattern: str, changes: dict[str, Any], multiple: int
) -> None:
    """Found by trying lengths, going down through the stages."""
    config = HyenaGLTConfig(pattern=pattern, **changes)
    assert merging_multiple(config) == multiple
    fitting = [length for length in range(1, 1025) if fits(pattern, length, config)]
    assert fitting == [length for length in range(1, 1025) if length % multiple == 0]


def fits(pattern: str, length: int, config: HyenaGLTConfig) -> bool:
    """Whether every stage is given whole windows."""
    lengths, shapes = [length], iter(stage_shapes(config))
    for sign in pattern:
        if sign == "(":
            shape = next(shapes)
            if lengths[-1] % shape.window:
                return False
            lengths.append(lengths[-1] // shape.window * shape.slots)
        if sign == ")":
            lengths.pop()
    return True


@pytest.mark.parametrize(("pattern", "changes", "multiple"), NESTED)
def test_shares_are_the_positions_that_blocks_and_stages_are_given(
    pattern: str, changes: dict[str, Any], multiple: int
) -> None:
    config = HyenaGLTConfig(pattern=pattern, **changes)
    lengths, blocks, stages = [multiple], [], []
    shapes = iter(stage_shapes(config))
    for sign in pattern:
        if sign == "(":
            shape = next(shapes)
            stages.append(Fraction(lengths[-1], multiple))
            lengths.append(lengths[-1] // shape.window * shape.slots)
        elif sign == ")":
            lengths.pop()
        elif sign.isalpha():
            blocks.append(Fraction(lengths[-1], multiple))
    assert block_shares(config) == tuple(blocks)
    assert stage_shares(config) == tuple(stages)
    assert len(blocks) == len(config.signs)


def test_repeats_around_and_inside_stages_number_them_in_order() -> None:
    config = HyenaGLTConfig(pattern="[(S)0.5(M)0.75]2", window=16)
    assert [s.merge_ratio for s in stage_shapes(config)] == [0.5, 0.75, 0.5, 0.75]
    assert config.signs == ("S", "M", "S", "M")
    assert block_shares(config) == (Fraction(12, 16), Fraction(8, 16)) * 2
