"""The lengths of a curriculum against the rule taken step by step, and what may not be asked."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from megatron_hyena.config import (
    Config,
    LengthSchedule,
    check_layout,
    length_multiple,
    length_schedule,
    load_config,
)
from megatron_hyena.errors import UserError

CASES = [  # full length, first length, growth, steps of growth
    (8192, 512, "linear", 100),
    (8192, 512, "doubling", 100),
    (8192, 1024, "linear", 3),  # fewer steps than lengths
    (8192, 2, "doubling", 5),
    (6000, 500, "linear", 37),
    (6000, 500, "doubling", 37),  # 12 is no power of two
    (3465, 33, "linear", 1000),
    (3465, 33, "doubling", 1000),
    (700, 100, "doubling", 9),  # 7 is prime: nothing between
    (1024, 1024, "linear", 10),
    (1024, 1024, "doubling", 10),
    (1_048_576, 1024, "linear", 12_345),
]


def configure(*overrides: str) -> Config:
    return load_config(None, overrides)


def curriculum(full: int, first: int, growth: str, steps: int, *more: str) -> Config:
    return configure(
        f"data.sequence_length={full}",
        f"curriculum.initial_length={first}",
        f"curriculum.growth={growth}",
        f"curriculum.steps={steps}",
        "train.steps=20000",
        *more,
    )


def asked_for(step: int, full: int, first: int, growth: str, steps: int) -> int:
    """What the rule asks for, before it is rounded down."""
    done = min(step, steps)
    if growth == "linear":
        return first + (full - first) * done // steps
    doublings = next(n for n in range(64) if first << n >= full)
    return min(full, first << (doublings * done // steps))


@pytest.mark.parametrize(("full", "first", "growth", "steps"), CASES)
def test_every_step_has_the_longest_legal_length(full, first, growth, steps):
    schedule = length_schedule(curriculum(full, first, growth, steps))
    legal = [n for n in range(first, full + 1, first) if full % n == 0]
    for step in [*range(steps + 3), 10 * steps, 10**9]:
        wanted = max(n for n in legal if n <= asked_for(step, full, first, growth, steps))
        assert schedule.at(step) == wanted, step
    assert schedule.at(0) == first
    assert schedule.at(steps - 1) < full or first == full
    assert {schedule.at(step) for step in (steps, steps + 1, 10**12)} == {full}
    assert schedule.stages[0] == (0, first)
    assert all(a < b and m < n for (a, m), (b, n) in pairwise(schedule.stages))


@pytest.mark.parametrize("count", [15, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("growth", ["linear", "doubling"])
def test_drawn_curricula_follow_the_rule(growth, count):
    draw = random.Random(4)
    for _ in range(count):
        first, quotient = draw.randint(2, 40), draw.randint(1, 200)
        full, steps = first * quotient, draw.randint(1, 150)
        schedule = length_schedule(curriculum(full, first, growth, steps))
        for step in range(steps + 2):
            asked = asked_for(step, full, first, growth, steps)
            wanted = max(
                d for d in range(1, quotient + 1) if not quotient % d and first * d <= asked
            )
            assert schedule.at(step) == first * wanted


def test_spans_count_every_step_once():
    schedule = LengthSchedule(((0, 2), (3, 4), (10, 8)))
    for steps in range(1, 15):
        each = [schedule.at(step) for step in range(steps)]
        wanted = [(n, each.count(n)) for n in (2, 4, 8) if n in each]
        assert list(schedule.spans(steps)) == wanted
    assert str(schedule) == "2 from step 1, 4 from step 4, 8 from step 11"


def test_without_a_curriculum_the_length_stays():
    config = configure("data.sequence_length=1001", "parallel.context=4")
    assert length_schedule(config).stages == ((0, 1001),)
    check_layout(config, 4)


def test_half_of_the_steps_grow_unless_told():
    config = configure("curriculum.initial_length=512", "train.steps=300")
    assert length_schedule(config).stages == ((0, 512), (150, 1024))


LAYOUTS = [(1, False, 1), (2, False, 1), (2, True, 1), (1, False, 2), (2, True, 2), (4, True, 3)]


@pytest.mark.parametrize(("tensor", "sequence", "context"), LAYOUTS)
@pytest.mark.parametrize("growth", ["linear", "doubling"])
def test_all_lengths_are_legal_and_the_same_in_every_layout(tensor, sequence, context, growth):
    case = (3072, 48, growth, 200)
    config = curriculum(
        *case,
        f"parallel.tensor={tensor}",
        f"parallel.sequence={str(sequence).lower()}",
        f"parallel.context={context}",
        "model.pattern=SML",
        "train.global_batch_size=6",
    )
    multiple = context * (tensor if sequence else 1)
    assert length_multiple(config) == multiple
    check_layout(config, tensor * context)
    schedule = length_schedule(config)
    assert len(schedule.stages) > 4
    assert schedule == length_schedule(curriculum(*case))
    for step in range(210):
        length = schedule.at(step)
        assert length % multiple == 0
        assert 3072 % length == 0  # whole pieces: as many tokens in a step


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("curriculum.initial_length=-1", "curriculum.initial_length must be 0 or more"),
        ("curriculum.initial_length=1", "curriculum.initial_length must be 0 (none), 2 or more"),
        ("curriculum.steps=-1", "curriculum.steps must be 0 or more"),
        (
            "curriculum.growth=cosine",
            "curriculum.growth='cosine' is unknown; use linear or doubling",
        ),
        (
            "curriculum.steps=5",
            "curriculum.steps=5 without curriculum.initial_length; set both or neither",
        ),
    ],
)
def test_a_section_that_cannot_be(override, sentence):
    with pytest.raises(UserError) as caught:
        configure(override)
    assert str(caught.value) == sentence


FOUR = ("parallel.tensor=2", "parallel.sequence=true", "parallel.context=2")


@pytest.mark.parametrize(
    ("overrides", "ranks", "sentence"),
    [
        (
            ["curriculum.initial_length=2048"],
            1,
            "curriculum.initial_length = 2048 exceeds data.sequence_length = 1024, to which the "
            "length grows; lower the former",
        ),
        (
            ["curriculum.initial_length=100"],
            1,
            "data.sequence_length = 1024 is not a multiple of curriculum.initial_length = 100; "
            "nearest initial lengths: 128, 64",
        ),
        (
            ["curriculum.initial_length=512", "curriculum.steps=40", "train.steps=40"],
            1,
            "curriculum.steps = 40 leaves no step of the full length, for train.steps = 40; "
            "lower the former or raise the latter",
        ),
        (
            ["curriculum.initial_length=512", "train.steps=1"],
            1,
            "curriculum.steps = 1 leaves no step of the full length, for train.steps = 1; "
            "lower the former or raise the latter",
        ),
        (
            [*FOUR, "curriculum.initial_length=2"],
            4,
            "curriculum.initial_length = 2 is shorter than 4 (parallel.context = 2 x "
            "parallel.tensor = 2); nearest initial lengths: 4; nearest layouts for 4 ranks: "
            "tensor 1 x context 2 (with parallel.sequence=false), tensor 2 x context 1",
        ),
        (
            [*FOUR, "curriculum.initial_length=6", "data.sequence_length=24"],
            4,
            "curriculum.initial_length = 6 is not a multiple of 4 (parallel.context = 2 x "
            "parallel.tensor = 2); nearest initial lengths: 4, 8; nearest layouts for 4 ranks: ",
        ),
        (
            ["parallel.context=4", "curriculum.initial_length=5", "data.sequence_length=50"],
            4,
            "curriculum.initial_length = 5 is not a multiple of 4 (parallel.context = 4); nor is "
            "data.sequence_length = 50 a multiple of it; nearest layouts for 4 ranks: tensor 1 x "
            "context 1, ",
        ),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused_with_both_numbers(overrides, ranks, sentence):
    config = configure(*overrides)
    with pytest.raises(UserError) as caught:
        check_layout(config, ranks)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_the_nearest_initial_length_is_possible():
    for first in (2, 6):
        text = [*FOUR, "data.sequence_length=24", "train.global_batch_size=8"]
        with pytest.raises(UserError) as caught:
            check_layout(configure(*text, f"curriculum.initial_length={first}"), 4)
        named = str(caught.value).partition("initial lengths: ")[2].partition(";")[0].split(", ")
        assert named == (["4"] if first == 2 else ["4", "8"])
        for length in named:
            check_layout(configure(*text, f"curriculum.initial_length={length}"), 4)
