"""The look shared by all plots: colours, bare axes, and saving by atomic rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL = "#0b6e8f"
BEST_MARKOV = "#c8641b"
MARKOV = "#b9c2cb"
UNIFORM = "#dfe4e8"
INK = "#22303c"
MUTED = "#66757f"
STAGES = ((MODEL, "#8cc3d4"), (BEST_MARKOV, "#efbf97"), ("#5b4a8a", "#b9aed6"))

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9edf0",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "savefig.dpi": 160,
}


@contextmanager
def new_figure(out_png: Path, width: float, height: float) -> Iterator[Figure]:
    """Yields an empty figure of `width` x `height` inches; on leaving saves it as `out_png`.

    Needs no display and leaves matplotlib's global state (pyplot, backend) alone.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        out_png.parent.mkdir(parents=True, exist_ok=True)
        temporary = out_png.with_name(out_png.name + ".tmp")
        figure.savefig(temporary, format="png")
        os.replace(temporary, out_png)


def stage_shades(number: int) -> tuple[str, str]:
    """A dark and a light shade of merged stage `number`; they come again after a few."""
    return STAGES[number % len(STAGES)]


def label_line(axes: Axes, text: str, height: float, color: str) -> None:
    """Names a horizontal line, above it at the right end."""
    axes.annotate(
        text,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        color=color,
        fontsize=9,
        zorder=5,
    ).set_in_layout(False)


def note(axes: Axes, text: str) -> None:
    """A muted line under the title, at the left."""
    axes.annotate(
        text,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        color=MUTED,
        fontsize=9,
    )
