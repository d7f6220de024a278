"""The evaluation's comparison as bars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megatron_hyena.evaluation.report import UNIFORM_BITS, EvaluationReport, verdict
from megatron_hyena.observe.plots import figure as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _Bar:
    label: str
    bits: float
    color: str
    bold: bool = False


def plot_evaluation(report: EvaluationReport, out_png: Path) -> None:
    """Horizontal bars of bits per base: uniform, each Markov order at its best, the model."""
    bars = [_Bar("uniform", UNIFORM_BITS, look.UNIFORM)]
    for row in report.best_per_order():
        is_best = row is report.best_markov
        color = look.BEST_MARKOV if is_best else look.MARKOV
        bars.append(_Bar(f"Markov order {row.order}", row.bits_per_base, color, is_best))
    bars.append(_Bar(report.model_name, report.model_bits, look.MODEL, bold=True))

    low, high = (extreme(bar.bits for bar in bars) for extreme in (min, max))
    left = max(0.0, low - 0.45 * (high - low))
    with look.new_figure(out_png, 8.5, 1.6 + 0.36 * len(bars)) as figure:
        axes = figure.subplots()
        places = np.arange(len(bars))[::-1]
        axes.barh(
            places,
            [bar.bits - left for bar in bars],
            left=left,
            height=0.72,
            color=[bar.color for bar in bars],
        )
        axes.axvline(
            report.best_markov.bits_per_base, color=look.BEST_MARKOV, lw=1.3, ls=(0, (5, 3))
        )
        for place, bar in zip(places, bars, strict=True):
            axes.annotate(
                f"{bar.bits:.4f}",
                (bar.bits, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
                fontweight="bold" if bar.bold else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
        axes.set_yticks(places, [bar.label for bar in bars], color=look.INK)
        for tick, bar in zip(axes.get_yticklabels(), bars, strict=True):
            tick.set_fontweight("bold" if bar.bold else "normal")
        axes.set_ylim(-0.65, len(bars) - 0.35)
        axes.set_xlim(left, high + 0.12 * (high - left))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        sentence = verdict(report).replace(" by ", "\nby ", 1)
        axes.set_title(f"Bits per base on {report.scored_bases:,} held-out bases", pad=34)
        look.note(axes, sentence)
        axes.set_xlabel(f"bits per base, lower is better   (axis cut: starts at {left:.3f}, not 0)")
        if left > 0:
            _break_bars(axes, left, places)


def _break_bars(axes: Axes, left: float, places: NDArray) -> None:
    """White slashes through the foot of each bar: the bar is longer than drawn."""
    right = axes.get_xlim()[1]
    foot, lean = left + 0.022 * (right - left), 0.004 * (right - left)
    for place in places:
        for shift in (0.0, 0.009 * (right - left)):
            axes.plot(
                [foot + shift - lean, foot + shift + lean],
                [place - 0.45, place + 0.45],
                color="white",
                linewidth=2.2,
                solid_capstyle="butt",
            )
