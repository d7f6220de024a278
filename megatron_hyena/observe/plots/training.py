"""Training curves over steps and tokens: loss, learning rate, gradient norm, rates of merging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megatron_hyena.errors import UserError
from megatron_hyena.evaluation.report import UNIFORM_BITS
from megatron_hyena.observe.metrics import VALIDATION_FILE, read_metrics
from megatron_hyena.observe.plots import figure as look
from megatron_hyena.observe.plots.smoothing import running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = dict[str, float]
KEPT = "merge/{}/kept"
"""The figure of a merged stage, by number."""


def plot_training(
    metrics_path: Path,
    out_png: Path,
    best_markov_bits: float | None = None,
    kept_targets: Sequence[float] = (),
) -> None:
    """Loss in bits per base, learning rate and gradient norm over steps, tokens on top.

    Validation points come from `validation.jsonl` beside `metrics_path`. `best_markov_bits` draws
    the line to beat. Where merged stages were logged, a panel shows the fraction of positions that
    each keeps; `kept_targets` are the fractions asked for, by stage. Raises UserError if nothing
    was logged.
    """
    records = read_metrics(metrics_path)
    if not records:
        raise UserError(f"{metrics_path} holds no step yet; train at least one logged step")
    validation_path = metrics_path.with_name(VALIDATION_FILE)
    validation = read_metrics(validation_path) if validation_path.exists() else []
    merges = any(KEPT.format(0) in record for record in records)
    heights = [3.4, 1, 1, *([1.2] if merges else [])]
    with look.new_figure(out_png, 8.5, 6.5 + (1.4 if merges else 0)) as figure:
        loss, rate, norm, *kept = figure.subplots(
            len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}
        )
        _draw_loss(loss, records, validation, best_markov_bits)
        steps = _column(records, "step")
        for axes, key, label in ((rate, "lr", "learning rate"), (norm, "grad_norm", "grad. norm")):
            axes.plot(steps, _column(records, key), color=look.MODEL, linewidth=1.2)
            axes.set_ylabel(label)
            axes.set_ylim(bottom=0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-1, 3), useMathText=True)
        for axes in kept:
            _draw_kept(axes, records, kept_targets)
        figure.axes[len(heights) - 1].set_xlabel("step")
        norm.set_xlim(0, steps[-1] * 1.01)
        figure.align_ylabels()


def _draw_kept(axes: Axes, records: list[Record], targets: Sequence[float]) -> None:
    """Of each merged stage, the kept fraction of its positions and, dashed, the target."""
    steps, number = _column(records, "step"), 0
    while any(KEPT.format(number) in record for record in records):
        color = look.stage_shades(number)[0]
        kept = _column(records, KEPT.format(number))
        axes.plot(steps, kept, color=color, linewidth=1.2, label=f"stage {number}")
        if number < len(targets):
            axes.axhline(targets[number], color=color, linewidth=1.1, linestyle=(0, (5, 3)))
        number += 1
    axes.set_ylim(bottom=0)
    axes.set_ylabel("kept")
    if targets:
        axes.plot([], [], color=look.MUTED, linewidth=1.1, linestyle=(0, (5, 3)), label="target")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.97), ncols=number + 1, borderaxespad=0.1)


def _draw_loss(
    axes: Axes, records: list[Record], validation: list[Record], best_markov_bits: float | None
) -> None:
    steps, bits = _column(records, "step"), _column(records, "loss") / math.log(2)
    smooth = running_mean(bits, max(1, len(bits) // 40))
    smoothed = smooth is not bits
    raw_style: dict[str, Any] = {
        "color": look.MODEL,
        "linewidth": 1.0,
        "alpha": 0.3 if smoothed else 1.0,
    }
    axes.plot(steps, bits, label="training batch", **raw_style)
    if smoothed:
        axes.plot(steps, smooth, color=look.MODEL, linewidth=2, label="training, running mean")
    valid_bits = _column(validation, "valid_loss") / math.log(2)
    if len(validation):
        valid_style: dict[str, Any] = {
            "color": look.INK,
            "markerfacecolor": "white",
            "markeredgewidth": 1.6,
        }
        valid_steps = _column(validation, "step")
        axes.plot(
            valid_steps, valid_bits, "o-", lw=1, ms=6, zorder=4, label="validation", **valid_style
        )
    lines = {"uniform": (UNIFORM_BITS, look.MUTED)}
    if best_markov_bits is not None:
        lines["best Markov model"] = (best_markov_bits, look.BEST_MARKOV)
    for label, (height, color) in lines.items():
        axes.axhline(height, color=color, linewidth=1.3, linestyle=(0, (5, 3)))
        look.label_line(axes, label, height, color)
    axes.set_title("Training", pad=30)
    axes.set_ylabel("bits per base")
    _cut_loss_axis(
        axes, steps, bits, smooth, [*valid_bits, *(height for height, _ in lines.values())]
    )
    _tokens_on_top(axes, records)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.085), ncols=3, borderaxespad=0)


def _cut_loss_axis(
    axes: Axes, steps: NDArray, bits: NDArray, smooth: NDArray, also_visible: Sequence[float]
) -> None:
    """Leaves out the steep fall of the first steps, and says from where the curve comes."""
    settled = slice(len(bits) // 20, None)
    visible = np.array([*smooth[settled], *also_visible])
    low = np.nanmin([*bits[settled], *also_visible])
    high = max(np.nanpercentile(visible, 99), UNIFORM_BITS)
    margin = 0.08 * (high - low) or 0.1
    low, high = low - margin / 2, high + margin
    axes.set_ylim(low, high)
    above = np.flatnonzero(smooth > high)
    if len(above):
        axes.annotate(
            f"from {np.nanmax(bits):.2f}, above this range",
            (steps[min(above[-1] + 1, len(steps) - 1)], 1),
            xycoords=("data", "axes fraction"),
            xytext=(10, -3),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color=look.MUTED,
        )


def _tokens_on_top(axes: Axes, records: list[Record]) -> None:
    last = records[-1]
    if not last.get("tokens"):
        return
    per_step = last["tokens"] / last["step"]
    top = axes.secondary_xaxis(
        "top", functions=(partial(np.multiply, per_step), partial(np.multiply, 1 / per_step))
    )
    top.xaxis.set_major_formatter(lambda tokens, _: f"{_short_count(tokens)} tokens")
    top.spines["top"].set_visible(False)
    top.tick_params(length=0, labelsize=9)


def _short_count(number: float) -> str:
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:g}{suffix}"
    return f"{number:g}"


def _column(records: list[Record], key: str) -> NDArray[np.float64]:
    return np.array([record.get(key, math.nan) for record in records], dtype=np.float64)
