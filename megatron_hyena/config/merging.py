"""Merged stages: their windows and slots, from the model section alone.

Of each window of W positions a stage keeps at most K slots, so K is chosen above the expected
number W (1 - merge_ratio) of chunks, by `SPARE` standard deviations of a count with independent
openings. Inner stages take windows of the outer one's slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from megatron_hyena.config.pattern import Stage, parse_layout
from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    from megatron_hyena.config.model import HyenaGLTConfig

SPARE = 2.0
"""Standard deviations between the expected and the largest number of chunks of a window."""
ROUNDING = 8
"""Slots of a window of 64 or more positions are rounded up to a multiple of this."""
MERGERS = ("wcc", "static", "precomputed", "hnet")
CHOICES = {
    "merger": MERGERS,
    "similarity": ("mlp", "cosine"),
    "merge_fn": ("linear", "select", "mean"),
    "complexity": ("window", "kmer", "global"),
    "ratio_loss": ("lagged", "none"),
    "smoothing": ("ema", "none"),
    "router_input": ("encoder", "trunk"),
}

OF_ROUTERS: dict[str, tuple[object, ...]] = {
    "router_input": (),
    "similarity": (),
    "threshold": (),
    "router_temperature": (),
    "smoothing": ("none",),
    "ratio_loss": ("none",),
    "ratio_weight": (0.0,),
    "controller_eta": (),
}
"""Fields that only a router reads: what is so without one, whatever they say."""


@dataclass(frozen=True)
class StageShape:
    """Sizes of one merged stage.

    Attributes:
        window: positions of a window, W.
        slots: chunks that a window can hold, K.
        merge_ratio: fraction of the positions that is to be merged away.
    """

    window: int
    slots: int
    merge_ratio: float

    @property
    def keep(self) -> float:
        """Expected chunks per position."""
        return 1.0 - self.merge_ratio


def stage_shapes(config: HyenaGLTConfig) -> tuple[StageShape, ...]:
    """Sizes of every stage of the pattern, by number."""
    return tuple(_shape(stage, config) for stage in parse_layout(config.pattern).stages)


def _shape(stage: Stage, config: HyenaGLTConfig) -> StageShape:
    ratio = config.merge_ratio if stage.merge_ratio is None else stage.merge_ratio
    window, keep = config.window, 1.0 - ratio
    if config.merger == "static":
        return StageShape(window, max(1, round(keep * window)), ratio)
    if config.slots:
        return StageShape(window, config.slots, ratio)
    slots = math.ceil(keep * window + SPARE * math.sqrt(keep * ratio * window))
    if window >= 8 * ROUNDING:
        slots = -(-slots // ROUNDING) * ROUNDING
    return StageShape(window, min(window, slots), ratio)


def block_shares(config: HyenaGLTConfig) -> tuple[Fraction, ...]:
    """Of each block: positions that it computes, slots of its stages, over the sequence's bytes."""
    layout, shapes = parse_layout(config.pattern), stage_shapes(config)
    shares: dict[int, Fraction] = {}

    def walk(items: tuple[int | Stage, ...], share: Fraction) -> None:
        for item in items:
            if isinstance(item, Stage):
                shape = shapes[item.number]
                walk(item.items, share * Fraction(shape.slots, shape.window))
            else:
                shares[item] = share

    walk(layout.items, Fraction(1))
    return tuple(shares[number] for number in range(len(layout.signs)))


def stage_shares(config: HyenaGLTConfig) -> tuple[Fraction, ...]:
    """Of each stage: positions at its entry, over the sequence's bytes."""
    shares, shapes = {}, stage_shapes(config)

    def walk(items: tuple[int | Stage, ...], share: Fraction) -> None:
        for item in items:
            if isinstance(item, Stage):
                shares[item.number], shape = share, shapes[item.number]
                walk(item.items, share * Fraction(shape.slots, shape.window))

    walk(parse_layout(config.pattern).items, Fraction(1))
    return tuple(shares[number] for number in range(len(shapes)))


def merging_multiple(config: HyenaGLTConfig) -> int:
    """Positions of whole windows in every stage: a rank's share and a document are multiples."""
    layout = parse_layout(config.pattern)
    return _multiple(layout.items, stage_shapes(config))


def _multiple(items: tuple[int | Stage, ...], shapes: tuple[StageShape, ...]) -> int:
    multiple = 1
    for item in items:
        if isinstance(item, Stage):
            shape = shapes[item.number]
            inner = _multiple(item.items, shapes)
            multiple = math.lcm(multiple, shape.window * inner // math.gcd(inner, shape.slots))
    return multiple


def check_merging(config: HyenaGLTConfig) -> None:
    """Refuse fields that contradict each other.

    Raises:
        UserError: the first contradiction, with both numbers.
    """
    if not 0 <= config.merge_ratio < 1:
        raise UserError(
            f"model.merge_ratio={config.merge_ratio} is not in [0, 1); it is the fraction of "
            "positions removed"
        )
    if not 0 < config.threshold < 1:
        raise UserError(f"model.threshold={config.threshold} is not in (0, 1)")
    if config.complexity == "global" and config.causal:
        raise UserError(
            "model.complexity=global averages over the whole sequence, but the model is causal; "
            "use window or kmer"
        )
    if config.projection_bias and "(" in config.pattern:
        raise UserError(
            "model.projection_bias=true with a merged stage in model.pattern: biases would fill "
            "empty slots; leave one of them out"
        )
    for field, choices in CHOICES.items():
        if getattr(config, field) not in choices:
            raise UserError(
                f"model.{field}={getattr(config, field)!r}: use one of {', '.join(choices)}"
            )
    _check_numbers(config)
    _check_unused(config)
    for shape in stage_shapes(config):
        _check_shape(shape, config)


def _check_numbers(config: HyenaGLTConfig) -> None:
    if config.window < 2:
        raise UserError(f"model.window={config.window} must be 2 or more")
    if not config.router_temperature > 0:
        raise UserError(
            f"model.router_temperature={config.router_temperature} must be greater than 0"
        )
    if config.adaptive and config.complexity == "kmer" and config.window % 16:
        raise UserError(
            f"model.window={config.window} must be a multiple of 16 for model.complexity=kmer"
        )
    for name in ("slots", "gamma", "ratio_weight"):
        if not getattr(config, name) >= 0:
            raise UserError(f"model.{name}={getattr(config, name)} must be 0 or more")
    if not 0 < config.controller_eta <= 1:
        raise UserError(f"model.controller_eta={config.controller_eta} is not in (0, 1]")


def _check_unused(config: HyenaGLTConfig) -> None:
    """Refuse what the pattern or the chosen merger would ignore.

    A field is refused where it is neither its default nor what happens anyway, as smoothing=none
    for a merger without a router. A pattern without a merged stage may stand beside all that goes
    together, so that the model without merging is one override away from each with it; only where
    the pattern is the default, which nobody chose, is what asks for merging refused.
    """
    _check_chosen(config)
    if config.merger in ("static", "precomputed") and config.adaptive:
        raise UserError(
            f"model.adaptive=true shifts a router, which model.merger={config.merger} has not; "
            "use merger=wcc or adaptive=false"
        )
    if config.merger == "static" and config.slots:
        raise UserError(
            f"model.slots={config.slots} has no meaning for model.merger=static, whose slots are "
            f"all taken: {round((1 - config.merge_ratio) * config.window)} of each window by "
            "model.merge_ratio; set slots=0"
        )
    for name, so_anyway, why in _ignored(config):
        value, default = getattr(config, name), getattr(type(config), name)
        if value not in (default, *so_anyway):
            raise UserError(f"model.{name}={value} has no effect: {why}; leave it at {default}")


def _check_chosen(config: HyenaGLTConfig) -> None:
    own = type(config)
    if config.pattern != own.pattern:
        return
    for name in ("merger", "merge_ratio", "adaptive"):
        if (value := getattr(config, name)) != getattr(own, name):
            raise UserError(
                f"model.{name}={value} has no effect: model.pattern={own.pattern}, the default, "
                "merges nothing; put ( ) around the blocks that are to work on merged positions"
            )


def _ignored(config: HyenaGLTConfig) -> list[tuple[str, tuple[object, ...], str]]:
    """Fields without effect: the name, values that say what is so anyway, why."""
    found: list[tuple[str, tuple[object, ...], str]] = []
    if config.merger in ("static", "precomputed"):
        why = f"model.merger={config.merger} has no router"
        found += [(name, so_anyway, why) for name, so_anyway in OF_ROUTERS.items()]
    if config.merger == "hnet":
        why = "of model.merger=hnet a chunk stands for its first position"
        found.append(("merge_fn", ("select",), why))
        found.append(("similarity", ("cosine",), "the router of model.merger=hnet is a cosine"))
    if not config.adaptive:
        why = "model.adaptive=false looks at no complexity"
        found += [("complexity", ("window",), why), ("gamma", (0.0,), why)]
    if config.ratio_loss == "none":
        found.append(("ratio_weight", (0.0,), "model.ratio_loss=none leaves the loss out"))
    return found


def _check_shape(shape: StageShape, config: HyenaGLTConfig) -> None:
    expected = shape.keep * shape.window
    if shape.slots > shape.window:
        raise UserError(
            f"model.slots={config.slots} exceeds model.window={config.window}: a window has no "
            "more chunks than positions"
        )
    if expected < 1:
        raise UserError(
            f"merge_ratio {shape.merge_ratio} of model.window={shape.window} leaves {expected:.2f} "
            "chunks per window, but each has at least one; raise the window or lower the ratio"
        )
    if config.merger != "static" and shape.slots < expected:
        raise UserError(
            f"model.slots={shape.slots} is too small for merge_ratio {shape.merge_ratio}: of each "
            f"window of {shape.window}, {expected:.1f} chunks are to be kept; raise model.slots or "
            "the ratio"
        )
    if config.merger == "static" and abs(shape.slots - expected) > 0.02 * shape.window:
        raise UserError(
            f"merge_ratio {shape.merge_ratio} of model.window={shape.window} is {expected:.2f} "
            "chunks per window, which merger=static cannot round; choose a larger window"
        )
