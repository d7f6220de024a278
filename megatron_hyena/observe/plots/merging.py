"""The chunks of merged stages along a region, under the sequence and its genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_hyena.evaluation.chunks import StagePositions, local_kept
from megatron_hyena.observe.plots import figure as look
from megatron_hyena.observe.plots.genome import Gene, draw_genes, draw_sequence, sequence_height

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 12.0
PANEL = 1650
"""Inches of a figure; about the pixels of its panels."""
NARROWEST = 3.0
"""Pixels of a mean chunk below which single boxes give way to the local kept fraction."""
BINS, SHORTEST = 100, 50
"""Stretches of local means, at most; their shortest length in bases."""


@dataclass(frozen=True, eq=False)
class RegionView:
    """What is drawn.

    Attributes:
        title: above everything.
        start: first base, 0-based.
        bases: uint8 [n].
        genes: those that reach into it; None: no annotation is known.
        stages: by number.
    """

    title: str
    start: int
    bases: NDArray[np.uint8]
    stages: Sequence[StagePositions] = field(default_factory=tuple)
    genes: Sequence[Gene] | None = None

    @property
    def end(self) -> int:
        """The first base behind it."""
        return self.start + len(self.bases)


def plot_merging(view: RegionView, out_png: Path) -> None:
    """Genes, sequence, opening probability, and each stage's chunks, one panel below the other.

    Chunks are boxes in two alternating shades, each over its bases; where boxes would be narrower
    than `NARROWEST` pixels, the fraction of positions kept is drawn instead. Positions count from
    1.
    """
    routed = [stage for stage in view.stages if stage.probability is not None]
    boxed = [_shows_boxes(stage, view) for stage in view.stages]
    heights = {
        **({"genes": 0.75} if view.genes is not None else {}),
        "sequence": sequence_height(view.bases),
        **({"probability": 1.35} if routed else {}),
        **{f"chunks {n}": 0.45 if box else 1.15 for n, box in enumerate(boxed)},
    }
    with look.new_figure(out_png, WIDTH, 1.35 + 1.12 * sum(heights.values())) as figure:
        panels = figure.subplots(
            len(heights),
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": list(heights.values())},
        ).flat
        axes = dict(zip(heights, panels, strict=True))
        top, bottom = panels[0], panels[len(heights) - 1]
        top.set_title(view.title, pad=12 if view.genes is not None else 24)
        if view.genes is not None:
            draw_genes(axes["genes"], view.genes, view.start, view.end)
        draw_sequence(axes["sequence"], view.bases, view.start)
        if routed:
            _draw_probability(axes["probability"], view)
        for number, (stage, box) in enumerate(zip(view.stages, boxed, strict=True)):
            draw = _draw_boxes if box else _draw_kept
            draw(axes[f"chunks {number}"], stage, number, view)
        bottom.set_xlim(view.start + 0.5, view.end + 0.5)
        bottom.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        bottom.set_xlabel("position (bp)")
        for one in list(axes.values())[:-1]:
            one.tick_params(axis="x", length=0)
        figure.align_ylabels()


def _shows_boxes(stage: StagePositions, view: RegionView) -> bool:
    starts, _, _ = stage.overlapping(view.start, view.end)
    return PANEL / max(len(starts), 1) >= NARROWEST


def _local_edges(view: RegionView) -> NDArray[np.int64]:
    """Equal stretches of the region, within a base, and the end of the last."""
    count = int(np.clip(len(view.bases) // SHORTEST, 1, BINS))
    return np.rint(np.linspace(view.start, view.end, count + 1)).astype(np.int64)


def _draw_probability(axes: Axes, view: RegionView) -> None:
    edges = _local_edges(view)
    for number, stage in enumerate(view.stages):
        if stage.probability is None:
            continue
        inside = (stage.place >= view.start) & (stage.place < view.end)
        places, p = stage.place[inside], stage.probability[inside]
        color = look.stage_shades(number)[0]
        if len(places) <= PANEL / 2.5:
            style: dict[str, Any] = {"drawstyle": "steps-mid", "lw": 0.9}
            if number:
                style = {"marker": "o", "ms": 3, "ls": "none"}
            axes.plot(places + 1, p, color=color, label=stage.name, **style)
            continue
        middle, mean, low, high = _spread(places, p, edges)
        axes.fill_between(middle, low, high, color=color, alpha=0.18, linewidth=0)
        label = f"{stage.name}, mean and quartiles"
        axes.plot(middle, mean, color=color, lw=1.3, label=label)
    axes.axhline(0.5, color=look.MUTED, lw=0.9, ls=(0, (4, 3)), label="wants to open above")
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.5, 1])
    axes.set_ylabel("p(open)")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(view.stages) + 1, borderaxespad=0.1
    )


def _spread(
    places: NDArray[np.int64], p: NDArray[np.float64], edges: NDArray[np.int64]
) -> tuple[NDArray[np.float64], ...]:
    """Middles of the stretches between `edges`; mean and quartiles of p in those that have some."""
    cuts = np.searchsorted(places, edges)
    found = [(i, p[a:b]) for i, (a, b) in enumerate(pairwise(cuts)) if b > a]
    middle = np.array([(edges[i] + edges[i + 1] + 1) / 2 for i, _ in found])
    rows = [(part.mean(), *np.quantile(part, [0.25, 0.75])) for _, part in found]
    mean, low, high = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return middle, mean, low, high


def _draw_boxes(axes: Axes, stage: StagePositions, number: int, view: RegionView) -> None:
    starts, ends, _ = stage.overlapping(view.start, view.end)
    shades = look.stage_shades(number)
    first = int(np.searchsorted(stage.starts, starts[0])) if len(starts) else 0
    wide = PANEL / len(view.bases) * np.diff(starts).mean() > 8 if len(starts) > 1 else True
    for parity, color in enumerate(shades):
        chosen = (np.arange(len(starts)) + first) % 2 == parity
        spans = np.stack([starts[chosen] + 0.5, (ends - starts)[chosen]], axis=1)
        axes.broken_barh(
            spans.tolist(), (0, 1), facecolor=color, edgecolor="white", lw=0.5 if wide else 0.0
        )
    axes.set_ylim(-0.08, 1.08)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    axes.set_ylabel(stage.name, rotation=0, ha="right", va="center", color=shades[0])


def _draw_kept(axes: Axes, stage: StagePositions, number: int, view: RegionView) -> None:
    dark, light = look.stage_shades(number)
    bounds = _local_edges(view)
    kept, edges = local_kept(stage, bounds), bounds + 0.5
    axes.stairs(kept, edges, color=dark, lw=1.2, zorder=3)
    axes.stairs(np.nan_to_num(kept), edges, fill=True, color=light, alpha=0.55, linewidth=0)
    axes.axhline(stage.target, color=look.INK, lw=0.9, ls=(0, (4, 3)), zorder=4)
    axes.set_ylim(0, max(min(1.0, 1.25 * float(np.nanmax([*kept, stage.target]))), 0.05))
    axes.set_ylabel(f"{stage.name}\nkept", color=dark)
    length = round(len(view.bases) / len(kept))
    axes.annotate(
        f"in stretches of {length:,} bp; dashed: target {stage.target:.2f}",
        (1, 1),
        xycoords="axes fraction",
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        color=look.MUTED,
        fontsize=8,
    )
