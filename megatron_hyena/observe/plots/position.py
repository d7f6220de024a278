"""Bits per base along a region of the genome, with its genes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megatron_hyena.errors import UserError
from megatron_hyena.observe.plots import figure as look
from megatron_hyena.observe.plots.smoothing import running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_position(
    model_bits: NDArray[np.float64],
    markov_bits: NDArray[np.float64],
    out_png: Path,
    *,
    start: int = 0,
    window: int = 500,
    genes: Sequence[tuple[int, int, int]] = (),
) -> None:
    """Smoothed bits along a region, the model beside the best Markov model, genes below.

    `model_bits` and `markov_bits` are float [n], NaN where a base was not scored; their first
    element is base `start` (0-based) of the sequence. `window` bases are averaged, those in the
    middle with more weight. `genes` are (start, end, strand) on the sequence, half open, strand 1
    or -1. Raises UserError for unequal lengths.
    """
    if len(model_bits) != len(markov_bits) or not len(model_bits):
        raise UserError(
            f"{len(model_bits)} model values and {len(markov_bits)} Markov values cannot be"
            " compared by position; score the same non-empty region with both"
        )
    model, markov = (_smooth(bits, window) for bits in (model_bits, markov_bits))
    step = max(1, len(model) // 8000)  # more points than pixels only cost time
    places = (start + np.arange(0, len(model), step)) / 1000
    model, markov = model[::step], markov[::step]
    with look.new_figure(out_png, 11, 4.6) as figure:
        panels = {"height_ratios": [5, 0.7]} if genes else {}
        axes, *tracks = figure.subplots(
            2 if genes else 1, 1, sharex=True, squeeze=False, gridspec_kw=panels
        ).flat
        axes.plot(places, markov, color=look.BEST_MARKOV, lw=1.1, label="best Markov model")
        axes.plot(places, model, color=look.MODEL, lw=1.4, label="model")
        fill = {"interpolate": True, "linewidth": 0, "alpha": 0.22}
        axes.fill_between(places, model, markov, where=model <= markov, color=look.MODEL, **fill)
        axes.fill_between(
            places, model, markov, where=model > markov, color=look.BEST_MARKOV, **fill
        )
        axes.set_ylabel("bits per base")
        axes.set_title("Bits along the held-out region", pad=24)
        wins = np.mean((model < markov)[np.isfinite(model) & np.isfinite(markov)])
        look.note(
            axes,
            f"smoothed over {window:,} bp; the model is lower at {wins:.0%} of the positions",
        )
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2)
        axes.set_xlim(start / 1000, (start + len(model_bits)) / 1000)
        for track in tracks:
            _draw_genes(track, genes, start, start + len(model_bits))
        figure.axes[-1].set_xlabel("position (kbp)")


def _smooth(bits: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Two running means of half the window: a triangular weight, without a boxcar's jitter."""
    half = (window + 1) // 2
    return running_mean(running_mean(bits, half), half)


def _draw_genes(axes: Axes, genes: Sequence[tuple[int, int, int]], start: int, end: int) -> None:
    for strand, height, color in ((1, 0.55, look.INK), (-1, -0.45, look.MUTED)):
        spans = [
            (max(first, start) / 1000, (min(last, end) - max(first, start)) / 1000)
            for first, last, direction in genes
            if direction == strand and last > start and first < end
        ]
        axes.broken_barh(spans, (height - 0.35, 0.7), facecolor=color, edgecolor="white", lw=0.6)
    axes.set_ylim(-1, 1.1)
    axes.set_yticks([0.55, -0.45], ["CDS +", "CDS -"])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
