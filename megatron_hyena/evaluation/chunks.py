"""Figures of merged stages along a region: how much is kept, how long chunks are, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StagePositions:
    """One stage's n positions (bytes, or slots of an outer stage) along a sequence.

    Attributes:
        name: of the stage, for files and figures.
        target: fraction of positions that is to be kept.
        place: byte that each position stands for, int64 [n], ascending.
        opened, wanted, anchor: whether a chunk opens there, wanted to, had to; bool [n].
        probability: of opening, [n]; None without a router.
        end: the first byte behind the last position.
    """

    name: str
    target: float
    place: Places
    opened: Marks
    wanted: Marks
    anchor: Marks
    probability: npt.NDArray[np.float64] | None
    end: int

    @property
    def starts(self) -> Places:
        """First byte of each chunk."""
        return self.place[self.opened]

    @property
    def ends(self) -> Places:
        """The first byte behind each chunk."""
        return np.append(self.starts[1:], self.end)[: len(self.starts)]

    def overlapping(self, start: int, end: int) -> tuple[Places, Places, npt.NDArray[np.float64]]:
        """Starts, ends and opening probabilities of the chunks that have bytes in [start, end).

        Chunks are whole, they may reach out of it; the probability is 1 without a router.
        """
        kept = (self.starts < end) & (self.ends > start)
        p = self.probability
        opening = np.ones(kept.size) if p is None else p[self.opened]
        return self.starts[kept], self.ends[kept], opening[kept]


def stage_summary(
    stage: StagePositions, start: int, end: int, parts: Mapping[str, Marks]
) -> dict[str, Any]:
    """Figures over bytes [start, end); a chunk belongs to where it opens. None: nothing to count.

    Args:
        parts: name → bytes that belong to it, bool [end - start].
    Returns:
        `kept` of the stage's positions and its `target`; `kept_of_bytes`; `chunks`;
        `mean_length`, `median_length`, `length_95` in bytes; `dropped`, the share of the positions
        which wanted to open, and had not to anyway, that found no slot; `kept_of_bytes_in` each
        part.
    """
    inside = (stage.place >= start) & (stage.place < end)
    opened, free = stage.opened & inside, stage.wanted & inside & ~stage.anchor
    lengths = (stage.ends - stage.starts)[inside[stage.opened]]
    median, long = np.quantile(lengths, [0.5, 0.95]).tolist() if len(lengths) else (None, None)
    at = np.zeros(end - start, dtype=np.bool_)
    at[stage.place[opened] - start] = True
    return {
        "name": stage.name,
        "positions": int(inside.sum()),
        "chunks": int(opened.sum()),
        "kept": _share(opened.sum(), inside.sum()),
        "target": stage.target,
        "kept_of_bytes": _share(opened.sum(), end - start),
        "mean_length": float(lengths.mean()) if len(lengths) else None,
        "median_length": median,
        "length_95": long,
        "dropped": _share((free & ~stage.opened).sum(), free.sum()),
        "kept_of_bytes_in": {
            name: {"bytes": int(part.sum()), "kept": _share((at & part).sum(), part.sum())}
            for name, part in parts.items()
        },
    }


def stage_line(summary: Mapping[str, Any]) -> str:
    """What `stage_summary` says, in a line."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    parts = [
        f"{name.replace('_', ' ')} {shown(part['kept'], '.3f')}"
        for name, part in summary["kept_of_bytes_in"].items()
    ]
    return (
        f"{summary['name']}: {summary['chunks']:,} chunks, kept {shown(summary['kept'], '.3f')} "
        f"(target {summary['target']:.3f}), length {shown(summary['mean_length'], '.1f')} bp "
        f"(95 % up to {shown(summary['length_95'], '.0f')}), dropped "
        f"{shown(summary['dropped'], '.4f')}"
        + (f"; kept of the bases: {', '.join(parts)}" if parts else "")
    )


def _share(part: np.integer[Any] | int, whole: np.integer[Any] | int) -> float | None:
    return float(part / whole) if whole else None


def local_kept(stage: StagePositions, edges: Places) -> npt.NDArray[np.float64]:
    """Kept fraction of the stage's positions in bytes [edges[i], edges[i + 1]); NaN without any.

    `edges` are ascending, int64 [m + 1]; the result is [m].
    """
    inside = (stage.place >= edges[0]) & (stage.place < edges[-1])
    number = np.searchsorted(edges, stage.place[inside], side="right") - 1
    positions = np.bincount(number, minlength=len(edges) - 1)
    opened = np.bincount(number, weights=stage.opened[inside], minlength=len(edges) - 1)
    return np.asarray(opened / np.where(positions > 0, positions, np.nan))
