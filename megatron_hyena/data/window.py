"""A window: the bytes of one sequence and what is known of each; cut from a run on a strand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import PAD, Bases, SequenceType, reverse_complement
from megatron_hyena.data.shard_reader import Run
from megatron_hyena.data.tracks import (
    BOUNDARIES,
    FEATURES,
    TYPE,
    Values,
    turned,
    unknown_values,
)
from megatron_hyena.errors import UserError


@dataclass(frozen=True, eq=False)
class Window:
    """The bytes of one training sequence and of the target of its last position.

    Several windows stacked have a first dimension B.
    """

    bases: Bases
    """uint8 [L + 1]"""
    types: npt.NDArray[np.uint8]
    """uint8 [L + 1], the `SequenceType` of each byte."""
    documents: npt.NDArray[np.int64] | None = None
    """int64 [L + 1], the number of each byte's run in the stream's `runs`; None where the
    window is of one run."""
    tracks: Mapping[str, Values] = field(default_factory=dict)
    """[L + 1] each: the values beside the bytes, of the tracks asked for."""

    def row(self, index: int) -> Window:
        """One of several stacked windows."""
        return Window(
            self.bases[index],
            self.types[index],
            None if self.documents is None else self.documents[index],
            {name: values[index] for name, values in self.tracks.items()},
        )


def stack_windows(windows: Sequence[Window]) -> Window:
    """B windows of one length, with the same tracks, all with documents or all without."""
    documents = [window.documents for window in windows if window.documents is not None]
    return Window(
        np.stack([window.bases for window in windows]),
        np.stack([window.types for window in windows]),
        np.stack(documents) if documents else None,
        {name: np.stack([window.tracks[name] for window in windows]) for name in windows[0].tracks},
    )


def gather_windows(parts: Sequence[tuple[npt.NDArray[np.int64], Window]]) -> Window:
    """Stacked windows, the rows of each part at its indices, which together are 0 … B - 1."""
    rows = np.argsort(np.concatenate([index for index, _ in parts]), kind="stable")
    windows = [window for _, window in parts]
    if len(windows) == 1:
        return windows[0]
    documents = [window.documents for window in windows if window.documents is not None]
    return Window(
        np.concatenate([window.bases for window in windows])[rows],
        np.concatenate([window.types for window in windows])[rows],
        np.concatenate(documents)[rows] if documents else None,
        {
            name: np.concatenate([window.tracks[name] for window in windows])[rows]
            for name in windows[0].tracks
        },
    )


def read_window(
    run: Run, start: int, end: int, tracks: Sequence[str], *, reverse: bool = False
) -> Window:
    """Bases [start, end) of `run` and their tracks; `reverse` reads DNA from the other strand.

    A track's values turn round with their bases (see `turned`). RNA, protein and mixed sequence is
    read as it stands whatever `reverse` says.
    """
    bases = run.read(start, end)
    values = {name: _values(run, name, start, end) for name in tracks}
    if reverse and run.type is SequenceType.DNA:
        bases = reverse_complement(bases)
        values = {name: turned(name, found) for name, found in values.items()}
    return Window(bases, np.full(len(bases), run.type, dtype=np.uint8), None, values)


def join_windows(parts: Sequence[Window], documents: Sequence[int]) -> Window:
    """The parts end to end, all bytes of part i of document `documents[i]`."""
    return Window(
        np.concatenate([part.bases for part in parts]),
        np.concatenate([part.types for part in parts]),
        np.repeat(np.array(documents, dtype=np.int64), [len(part.bases) for part in parts]),
        {name: np.concatenate([part.tracks[name] for part in parts]) for name in parts[0].tracks},
    )


def pad_window(window: Window, length: int) -> Window:
    """`window` filled up with PAD to `length`.

    PAD is of the type and the document of the last byte, its tracks are unknown.
    """
    missing = length - len(window.bases)
    if missing == 0:
        return window
    documents = window.documents
    return Window(
        np.concatenate([window.bases, np.full(missing, PAD, dtype=np.uint8)]),
        np.concatenate([window.types, np.full(missing, window.types[-1], dtype=np.uint8)]),
        None if documents is None else np.concatenate([documents, documents[-1:].repeat(missing)]),
        {
            name: np.concatenate([values, _padding(name, values, missing)])
            for name, values in window.tracks.items()
        },
    )


def blank_like(window: Window) -> Window:
    """A window of nothing but PAD with the tracks and the type of `window`."""
    length = len(window.bases)
    tracks = {name: _padding(name, values, length) for name, values in window.tracks.items()}
    return Window(np.full(length, PAD, dtype=np.uint8), window.types, None, tracks)


def _padding(name: str, values: Values, length: int) -> Values:
    """What a track says under PAD: the type of its row, else nothing."""
    if name == TYPE:
        return np.full(length, values[-1], dtype=values.dtype)
    return unknown_values(values.dtype, length)


def check_tracks(runs: Sequence[Run], tracks: Sequence[str], *, both_strands: bool) -> None:
    """Raise UserError where a run lacks a track, or a track has no meaning on the other strand.

    A run may lack a float track, unknown throughout, only where no run of its sequence type has
    it: proteins beside a genome need no conservation.
    """
    for name in tracks:
        if name != TYPE:
            _check_track(runs, name)
        either = both_strands and any(run.type is SequenceType.DNA for run in runs)
        if name == BOUNDARIES and either:
            raise UserError(
                f"data.tracks names {name!r}, which hold on the strand they were made for alone; "
                "set data.reverse_complement=false"
            )


def _check_track(runs: Sequence[Run], name: str) -> None:
    found = {run.tracks[name][0].dtype for run in runs if name in run.tracks}
    types = {run.type for run in runs if name in run.tracks}
    if len(found) > 1:
        raise UserError(
            f"the track {name!r} is {' and '.join(sorted(d.name for d in found))} in different "
            "folders of shards; write them anew with tools.make_shards"
        )
    for run in runs:
        excused = types and run.type not in types and all(d.kind == "f" for d in found)
        if name not in run.tracks and not excused:
            held = ", ".join([TYPE, *run.tracks])
            option = "--features" if name == FEATURES else f"--track {name}"
            raise UserError(
                f"data.tracks names {name!r}, which the shards in {run.folder} lack (they have "
                f"{held}); write them with tools.make_shards {option}, or leave it out"
            )


def _values(run: Run, name: str, start: int, end: int) -> Values:
    if name == TYPE:
        return np.full(end - start, run.type, dtype=np.int64)
    return run.read_track(name, start, end)
