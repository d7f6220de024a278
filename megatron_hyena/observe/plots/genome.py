"""Genes and sequence of a region, drawn as the upper panels of a figure. Positions count from 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_hyena.observe.plots import figure as look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LETTERS = {"A": "#3b9c5a", "C": "#2f6db5", "G": "#d9942b", "T": "#c5443c"}
OTHER = "#9aa5ad"
READABLE, PAINTED = 160, 3000
"""Bases up to which letters are written; up to which each is a stripe of its colour."""
MASKED = "#7d6b91"
LEGEND: dict[str, Any] = {
    "ncols": len(LETTERS) + 2,
    "fontsize": 8,
    "handlelength": 0.7,
    "handletextpad": 0.3,
    "columnspacing": 0.9,
    "borderaxespad": 0.1,
}
WRITTEN: dict[str, Any] = {"ha": "center", "va": "center", "color": "white", "clip_on": True}


class Gene(NamedTuple):
    """Bases [start, end), 0-based, on strand 1, -1 or 0 (not told)."""

    start: int
    end: int
    strand: int
    name: str = ""


def draw_genes(axes: Axes, genes: Sequence[Gene], start: int, end: int) -> None:
    """Arrows in the direction of the strand, + above -, with names where they fit."""
    for gene in genes:
        low, high = max(gene.start, start), min(gene.end, end)
        if low >= high:
            continue
        height = -0.5 if gene.strand < 0 else 0.5
        color = look.MUTED if gene.strand < 0 else look.INK
        left, right = low + 0.5, high + 0.5
        tip = min(0.008 * (end - start), (right - left) / 2)
        # A gene that is cut by the region has no tip there.
        on = tip if gene.strand > 0 and gene.end <= end else 0.0
        back = tip if gene.strand < 0 and gene.start >= start else 0.0
        outline = [
            (left, height),
            (left + back, height + 0.36),
            (right - on, height + 0.36),
            (right, height),
            (right - on, height - 0.36),
            (left + back, height - 0.36),
        ]
        axes.fill(*zip(*outline, strict=True), facecolor=color, edgecolor="white", lw=0.5)
        share = (high - low) / (end - start)
        if gene.name and share > 0.0095 * len(gene.name) + 0.008:
            axes.text((left + right) / 2, height - 0.02, gene.name, fontsize=8, **WRITTEN)
    _bare(axes, (-1, 1))
    axes.set_yticks([0.5, -0.5], ["genes +", "genes -"])


def sequence_height(bases: NDArray[np.uint8]) -> float:
    """Inches that `draw_sequence` wants."""
    return 0.35 if len(bases) <= PAINTED else 0.75


def draw_sequence(axes: Axes, bases: NDArray[np.uint8], start: int) -> None:
    """Letters, stripes of colour, or the GC fraction, by length; soft-masked bases as a bar."""
    stretches = len(bases) > PAINTED
    if stretches:
        _draw_gc(axes, bases, start)
    else:
        _draw_stripes(axes, bases, start)
    low, high = axes.get_ylim()
    masked = np.concatenate([[False], bases >= ord("a"), [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(masked)) + start + 0.5
    spans = list(zip(edges[::2], np.diff(edges)[::2], strict=True))
    if spans:
        height = 0.14 * (high - low)
        at = (low - height, 0.8 * height)
        axes.broken_barh(spans, at, facecolor=MASKED, linewidth=0, label="soft-masked")
        axes.set_ylim(low - height, high)
    if spans or not stretches:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.95), **LEGEND)


def _draw_stripes(axes: Axes, bases: NDArray[np.uint8], start: int) -> None:
    upper = bases & 0xDF
    known = np.zeros(len(bases), dtype=np.bool_)
    for letter, color in LETTERS.items():
        mine = (upper == ord(letter)) | ((letter == "T") & (upper == ord("U")))
        known |= mine
        _stripe(axes, np.flatnonzero(mine) + start, color, letter)
    _stripe(axes, np.flatnonzero(~known) + start, OTHER, "other")
    if len(bases) <= READABLE:
        for place, base in enumerate(bases.tolist(), start=start + 1):
            axes.text(place, 0.47, chr(base), family="DejaVu Sans Mono", fontsize=7.5, **WRITTEN)
    _bare(axes, (0, 1))
    axes.set_yticks([])
    axes.set_ylabel("sequence", rotation=0, ha="right", va="center")


def _stripe(axes: Axes, places: NDArray[np.int64], color: str, label: str) -> None:
    if len(places):
        spans = np.stack([places + 0.5, np.ones(len(places))], axis=1).tolist()
        axes.broken_barh(spans, (0, 1), facecolor=color, linewidth=0, label=label)


def _draw_gc(axes: Axes, bases: NDArray[np.uint8], start: int) -> None:
    window = max(1, round(len(bases) / 300))
    upper = bases & 0xDF
    strong = np.isin(upper, list(b"GCS")).astype(np.float64)
    known = np.isin(upper, list(b"ACGTUSW")).astype(np.float64)
    cuts = np.arange(0, len(bases), window)
    with np.errstate(invalid="ignore"):
        share = np.add.reduceat(strong, cuts) / np.add.reduceat(known, cuts)
    middle = (cuts + np.append(cuts[1:], len(bases))) / 2 + start + 0.5
    axes.plot(middle, share, color=look.MUTED, lw=1.0)
    axes.set_ylim(np.nanmin([0.2, *share]), np.nanmax([0.7, *share]))
    axes.set_ylabel("GC")
    look.note(axes, f"per {window:,} bp")


def _bare(axes: Axes, limits: tuple[float, float]) -> None:
    axes.set_ylim(*limits)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
