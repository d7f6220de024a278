"""Tracks written into a genome store: from files, or by a function of its contigs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.corpus.store_sums import seal_track
from megatron_hyena.data.store import Contig, GenomeStore, create_array
from megatron_hyena.data.tracks import DTYPES, Values, check_track_name
from megatron_hyena.errors import UserError
from megatron_hyena.formats.track_files import Stretches, read_track_file

if TYPE_CHECKING:
    import zarr


def write_track_files(
    group: zarr.Group,
    name: str,
    paths: Sequence[Path],
    contigs: Mapping[str, tuple[int, int]],
    total: int,
) -> None:
    """Write bedGraph or bigWig files as `tracks/NAME` float32 [total] of an open store.

    `contigs`: name → (start in the concatenated genome, length), in bases. Memory holds one chunk.
    Raises UserError as `read_track_file` does, where two rows give one base a value, and where
    no base gets one.
    """
    array = create_array(group.require_group("tracks"), name, "float32", total)
    painter = _Painter(paths[0], array)
    lengths = {contig: length for contig, (_, length) in contigs.items()}
    for path in paths:
        painter.path, known = path, painter.known
        for stretches in read_track_file(path, lengths):
            painter.paint(stretches, contigs[stretches.contig][0])
        painter.flush()
        if painter.known == known:
            raise UserError(f"{path} gives no base a value; give another file or leave it out")
    array.attrs.update(
        {
            "kind": "numbers, NaN where unknown",
            "known": painter.known,
            "least": painter.least,
            "greatest": painter.greatest,
        }
    )


class _Painter:
    """Paints stretches on an array of NaN, one chunk of it in memory at a time."""

    def __init__(self, path: Path, array: zarr.Array[Any]) -> None:
        self.path, self.array, self.size = path, array, array.chunks[0]
        self.number = -1
        self.chunk: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self.known = 0
        self.least, self.greatest = np.inf, -np.inf

    def paint(self, stretches: Stretches, origin: int) -> None:
        """Paint stretches of a contig that begins at `origin`."""
        order = np.argsort(stretches.starts, kind="stable")
        starts, ends = stretches.starts[order], stretches.ends[order]
        values = stretches.values[order]
        if len(twice := np.flatnonzero(ends[:-1] > starts[1:])):
            raise self._doubled(stretches.contig, int(starts[twice[0] + 1]))
        starts, ends = starts + origin, ends + origin
        for number in range(int(starts[0]) // self.size, -(-int(ends[-1]) // self.size)):
            low, high = number * self.size, (number + 1) * self.size
            # Sorted and disjoint: the stretches that reach into a chunk are neighbours.
            some = slice(
                int(np.searchsorted(ends, low, side="right")),
                int(np.searchsorted(starts, high, side="left")),
            )
            lengths = np.minimum(ends[some], high) - np.maximum(starts[some], low)
            if not len(lengths):
                continue
            self._load(number)
            before = np.cumsum(lengths) - lengths
            places = np.repeat(np.maximum(starts[some], low) - low - before, lengths)
            places += np.arange(len(places))
            if (painted := ~np.isnan(self.chunk[places])).any():
                first = int(places[painted.argmax()]) + low - origin
                raise self._doubled(stretches.contig, first)
            self.chunk[places] = np.repeat(values[some], lengths)
        self._count(ends - starts, values)

    def flush(self) -> None:
        """Write the chunk in hand."""
        if self.number >= 0:
            begin = self.number * self.size
            self.array[begin : begin + len(self.chunk)] = self.chunk

    def _load(self, number: int) -> None:
        if number != self.number:
            self.flush()
            begin = number * self.size
            self.number = number
            self.chunk = np.array(self.array[begin : begin + self.size], dtype=np.float32)

    def _count(self, lengths: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        told = ~np.isnan(values)
        if told.any():
            self.known += int(lengths[told].sum())
            self.least = min(self.least, float(values[told].min()))
            self.greatest = max(self.greatest, float(values[told].max()))

    def _doubled(self, contig: str, position: int) -> UserError:
        return UserError(
            f"{self.path}: two rows give a value to {contig!r} at {position} (0-based); keep one"
        )


def check_new_track(store: GenomeStore, name: str, *, overwrite: bool = False) -> None:
    """Raise UserError for a bad name, and for one that `store` has, unless `overwrite`."""
    check_track_name(name)
    if name in store.tracks and not overwrite:
        raise UserError(
            f"{store.path} has a track {name!r} already; pass --overwrite to replace it"
        )


def add_track(
    store: GenomeStore,
    name: str,
    values: Callable[[Contig], Values],
    attributes: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Add `tracks/NAME` to a store that exists; it appears whole.

    `values` gives [length] for each contig, all of one of `DTYPES`; `attributes` say what they
    mean. The store's checksums follow. Raises UserError as `check_new_track` does.
    """
    import zarr

    check_new_track(store, name, overwrite=overwrite)
    group = zarr.open_group(str(store.path), mode="a", zarr_format=3)
    group.require_group("tracks")
    folder, partial = store.path / "tracks" / name, store.path / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_contigs(group, partial.name, store, values).attrs.update(dict(attributes))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        seal_track(store.path, name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_contigs(
    group: zarr.Group, name: str, store: GenomeStore, values: Callable[[Contig], Values]
) -> zarr.Array[Any]:
    array: zarr.Array[Any] | None = None
    for contig, found in ((contig, values(contig)) for contig in store.contigs):
        if found.shape != (contig.length,) or found.dtype.name not in DTYPES:
            raise ValueError(f"{found.dtype} {found.shape} for {contig.length} bases")
        if array is None:
            array = create_array(group, name, found.dtype.name, store.total)
        elif array.dtype != found.dtype:
            raise ValueError(f"{found.dtype} after {array.dtype}")
        array[contig.start : contig.start + contig.length] = found
    assert array is not None
    return array
