"""A corpus in four panels: lengths, GC, k-mer spectrum, and who holds the bases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_hyena.corpus.describe import GC_BINS, GC_WINDOW, Description
from megatron_hyena.observe.plots import figure as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 12
"""Taxa with a bar of their own."""


def plot_corpus(found: Description, out_png: Path) -> None:
    """Write the picture of a description."""
    with look.new_figure(out_png, 12.0, 8.2) as figure:
        panels = figure.subplots(2, 2)
        figure.suptitle(found.path, x=0.01, ha="left", fontsize=11, color=look.MUTED)
        _draw_lengths(panels[0, 0], found)
        _draw_gc(panels[0, 1], found)
        _draw_spectrum(panels[1, 0], found)
        _draw_shares(panels[1, 1], found)


def _draw_lengths(axes: Axes, found: Description) -> None:
    from matplotlib.ticker import MaxNLocator

    lengths = found.lengths
    axes.set_title("Lengths of the records that are kept", pad=22)
    axes.set_xlabel("bases")
    axes.set_ylabel("records")
    if not len(lengths):
        look.note(axes, "shards do not tell")
        return
    low, high = max(1, int(lengths[-1])), int(lengths[0])
    edges = np.geomspace(low * 0.9, high * 1.1, 41)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.hist(lengths, bins=edges.tolist(), color=look.MODEL)
    axes.set_xscale("log")
    _short_numbers(axes)
    axes.axvline(found.n50(), color=look.BEST_MARKOV, lw=1.3, ls=(0, (5, 3)))
    look.note(axes, f"{len(lengths):,} records; dashed: N50, {found.n50():,} bases")


def _draw_gc(axes: Axes, found: Description) -> None:
    axes.set_title("GC of the splits", pad=22)
    axes.set_xlabel("% of G and C")
    axes.set_ylabel("% of the windows")
    places = (np.arange(GC_BINS) + 0.5) * 100 / GC_BINS
    for number, part in enumerate(p for p in found.parts if p.gc.sum()):
        colors = (*look.stage_shades(number // 2), look.MUTED)
        share = 100 * part.gc / part.gc.sum()
        axes.plot(places, share, color=colors[number % 2], lw=1.8, label=part.name)
    if axes.lines:
        axes.legend()
    look.note(axes, f"windows of {GC_WINDOW:,} bases, half of them known at least")


def _draw_spectrum(axes: Axes, found: Description) -> None:
    axes.set_title("Spectrum of k-mers", pad=22)
    axes.set_xlabel("times a k-mer occurs")
    axes.set_ylabel("distinct k-mers")
    times = sorted(found.spectrum)
    counts = [found.spectrum[t] * found.scaled for t in times]
    if times:
        axes.loglog(times, counts, ".", color=look.MODEL, ms=5)
    sampled = f", one in {found.scaled} counted" if found.scaled > 1 else ""
    look.note(axes, f"{found.k}{sampled}")


def _draw_shares(axes: Axes, found: Description) -> None:
    """Bases by taxon where there are several, else by split."""
    taxa = {taxon or "untold": bases for taxon, (_, bases) in found.by(lambda e: e.taxon).items()}
    several = len(taxa) > 1
    shares = taxa if several else {part.name: part.counts.bases for part in found.parts}
    rows = list(shares.items())
    if len(rows) > SHOWN:
        rows = [*rows[: SHOWN - 1], ("others", sum(bases for _, bases in rows[SHOWN - 1 :]))]
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [bases for _, bases in rows], color=look.MODEL, height=0.7)
    axes.set_yticks(places, [_shortened(name) for name, _ in rows], fontsize=8.5)
    axes.set_title("Bases by taxon" if several else "Bases by split", pad=22)
    axes.grid(axis="y", visible=False)
    for place, (_, bases) in zip(places, rows, strict=True):
        axes.annotate(
            f"{bases:,}",
            (bases, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_xlim(0, 1.28 * max(bases for _, bases in rows))
    _short_numbers(axes)


def _short_numbers(axes: Axes) -> None:
    """1 k, 2.5 M, 3 G under the horizontal axis."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter("")


def _shortened(name: str) -> str:
    """The last level of a lineage."""
    last = name.rpartition(";")[2].strip()
    return last if len(last) <= 28 else f"{last[:27]}…"
