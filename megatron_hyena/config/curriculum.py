"""The length of training sequences, step by step: a pure function of the configuration.

Lengths are `curriculum.initial_length` times whole numbers, and all divide `data.sequence_length`:
a sequence of the full length is shown in equal pieces, so a step has as many bytes at every length,
and a layout that can take the first length can take all. No length depends on the layout, so a run
has the same ones in every layout, and goes on with them in another. All arithmetic is in whole
numbers: the same on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from megatron_hyena.config.merging import merging_multiple
from megatron_hyena.config.sections import Config


@dataclass(frozen=True)
class LengthSchedule:
    """Which length each optimizer step has.

    Attributes:
        stages: (first step, counted from 0; bases in a sequence from there on), in order of
            steps; lengths grow, the first stage is at step 0.
    """

    stages: tuple[tuple[int, int], ...]

    def at(self, step: int) -> int:
        """Bases in a sequence of optimizer step `step` (from 0); the last stage has no end."""
        return self.stages[bisect_right(self.stages, step, key=lambda stage: stage[0]) - 1][1]

    def spans(self, steps: int) -> Iterator[tuple[int, int]]:
        """(length, how many of the first `steps` steps have it), of those that any has."""
        ends = [first for first, _ in self.stages[1:]] + [steps]
        for (first, length), end in zip(self.stages, ends, strict=True):
            if first < min(end, steps):
                yield length, min(end, steps) - first

    def __str__(self) -> str:
        """`256 from step 1, 512 from step 101`: steps counted as they are logged, from 1."""
        return ", ".join(f"{length:,} from step {first + 1:,}" for first, length in self.stages)


def length_schedule(config: Config) -> LengthSchedule:
    """The lengths of a run that keeps the rules below; one stage without a curriculum.

    With q the full length over the first one l, S the step of the full length, step s asks for

        linear:    l + (q l - l) min(s, S) // S
        doubling:  l 2^(n min(s, S) // S), n the doublings until q l is reached or passed

    and has the longest l d that is not longer, d one of the divisors of q.
    """
    curriculum, full = config.curriculum, config.data.sequence_length
    if not curriculum.initial_length:
        return LengthSchedule(((0, full),))
    quotient, steps = full // curriculum.initial_length, growth_steps(config)
    first_steps: dict[int, int] = {}
    for factor in (d for d in range(1, quotient + 1) if quotient % d == 0):
        if curriculum.growth == "linear":
            done, whole = factor - 1, quotient - 1
        else:
            done, whole = (factor - 1).bit_length(), (quotient - 1).bit_length()
        first = -(-done * steps // whole) if done else 0
        first_steps[first] = factor * curriculum.initial_length  # of two at once, the longer
    return LengthSchedule(tuple(first_steps.items()))


def growth_steps(config: Config) -> int:
    """The first step, counted from 0, of the full length."""
    return config.curriculum.steps or max(1, config.train.steps // 2)


def length_units(config: Config) -> dict[str, int]:
    """What a sequence is cut into, by name; see `length_multiple`."""
    parallel = config.parallel
    units = {"parallel.context": parallel.context}
    if parallel.sequence:
        units["parallel.tensor"] = parallel.tensor
    units["windows of merged stages"] = merging_multiple(config.model)
    return units


def length_multiple(config: Config) -> int:
    """What a length must be a multiple of to need no padding in this layout."""
    return prod(length_units(config).values())


def curriculum_divides(config: Config, world_size: int) -> str | None:
    """A whole number of the first, shorter sequences makes one of the full length."""
    first, full = config.curriculum.initial_length, config.data.sequence_length
    if not first or full % first == 0:
        return None
    if first > full:
        return (
            f"curriculum.initial_length = {first} exceeds data.sequence_length = {full}, to which "
            "the length grows; lower the former"
        )
    return (
        f"data.sequence_length = {full} is not a multiple of curriculum.initial_length = {first}; "
        f"nearest initial lengths: {_nearest(first, full, 1)}"
    )


def curriculum_ends(config: Config, world_size: int) -> str | None:
    """Some steps have the full length."""
    steps, all_steps = growth_steps(config), config.train.steps
    if not config.curriculum.initial_length or steps < all_steps:
        return None
    return (
        f"curriculum.steps = {steps} leaves no step of the full length, for train.steps = "
        f"{all_steps}; lower the former or raise the latter"
    )


def curriculum_fits(config: Config, world_size: int) -> str | None:
    """Layout and model can cut the first length, and so every other, into equal parts."""
    first, multiple = config.curriculum.initial_length, length_multiple(config)
    if first % multiple == 0:
        return None
    units = " x ".join(f"{name} = {n}" for name, n in length_units(config).items() if n > 1)
    wrong = "shorter than" if first < multiple else "not a multiple of"
    lengths = _nearest(first, config.data.sequence_length, multiple)
    return f"curriculum.initial_length = {first} is {wrong} {multiple} ({units}); " + (
        f"nearest initial lengths: {lengths}"
        if lengths
        else f"nor is data.sequence_length = {config.data.sequence_length} a multiple of it"
    )


def _nearest(first: int, full: int, multiple: int) -> str:
    """The divisors of `full` that are multiples of `multiple` next below and above `first`."""
    possible = [n for n in range(2, full + 1) if full % n == 0 and n % multiple == 0]
    around = [n for n in possible if n < first][-1:] + [n for n in possible if n >= first][:1]
    return ", ".join(map(str, sorted(around, key=lambda n: (abs(n - first), n))))
