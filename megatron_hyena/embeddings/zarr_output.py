"""Embeddings as a Zarr v3 group that appears when it is whole, and grows where nobody sees it.

    emb.zarr/
      embeddings  [rows, h]       those of one sequence after those of another
      offsets     int64 [n + 1]   sequence i has the rows offsets[i] : offsets[i + 1]
      starts      int64 [n]       of its bases in the contig, 0-based; `ends` are beyond the last
      ends        int64 [n]
      strands     int8 [n]        1, or -1 where it was read from the other strand
      attributes                  names, contigs, and where the numbers come from

Until then it is `.emb.zarr.partial`, with a note of the sequences that are done.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.embeddings.options import EmbedOptions
from megatron_hyena.embeddings.pooling import Rows
from megatron_hyena.embeddings.stretches import Stretch
from megatron_hyena.errors import UserError
from megatron_hyena.formats.parquet_parts import goes_on
from megatron_hyena.runtime.lock import LOCK, only_process_in

CHUNK = 1 << 22
"""Bytes of a chunk before compression, about."""
_NOTE = "progress.json"


@contextmanager
def zarr_output(
    output: Path,
    settings: Mapping[str, Any],
    stretches: Sequence[Stretch],
    options: EmbedOptions,
    width: int,
    overwrite: bool = False,
) -> Iterator[ZarrOutput]:
    """A `ZarrOutput` that no other process of this machine has open.

    Args:
        overwrite: replace an output, and unfinished work of other settings; see `ZarrOutput`.
    Raises:
        UserError: as `ZarrOutput`; the output is there already; another process writes it.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already; pass --overwrite to replace it")
    if output.exists() and not (output / "zarr.json").is_file():
        raise UserError(f"{output} is no Zarr group, so it is not ours to overwrite; rename it")
    with only_process_in(_partial(output), patience=0.0):
        yield ZarrOutput(output, settings, stretches, options, width, overwrite)


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


class ZarrOutput:
    """One output, as far as it has come.

    Args:
        output: the folder.
        settings: what the numbers depend on; kept as attributes.
        width: h.
        overwrite: forget unfinished work of other settings.
    Raises:
        UserError: there is unfinished work of other settings.
    """

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        stretches: Sequence[Stretch],
        options: EmbedOptions,
        width: int,
        overwrite: bool,
    ) -> None:
        import zarr

        self.output, self.stretches, self.partial = output, stretches, _partial(output)
        self.settings = json.loads(json.dumps(settings))
        rows = [options.rows(stretch.length) for stretch in stretches]
        self.offsets = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.done = self._begun(overwrite)
        if self.done is None:
            self._clear()
            self._create(options, width)
            self._note(0)
        group = zarr.open_group(str(self.partial), mode="r+", zarr_format=3)
        array = group["embeddings"]
        assert isinstance(array, zarr.Array)
        self._array, self._held, self._at = array, list[Rows](), int(self.offsets[self.done or 0])

    def _begun(self, overwrite: bool) -> int | None:
        """Sequences that an earlier call finished; None to begin anew."""
        note = self.partial / _NOTE
        if not note.is_file():
            return None
        found = json.loads(note.read_text(encoding="utf-8"))
        same = goes_on(self.partial, found["settings"], self.settings, overwrite)
        return int(found["done"]) if same else None

    def _clear(self) -> None:
        """Empty the folder of all but the lock, which is held."""
        for path in self.partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    def _create(self, options: EmbedOptions, width: int) -> None:
        import zarr
        from zarr.codecs import ZstdCodec

        group = zarr.create_group(str(self.partial), zarr_format=3)
        total, size = int(self.offsets[-1]), np.dtype(options.dtype).itemsize
        group.create_array(
            "embeddings",
            shape=(total, width),
            chunks=(min(total, max(1, CHUNK // (width * size))), width),
            dtype=options.dtype,
            compressors=ZstdCodec(level=1, checksum=True),
        )
        beside: dict[str, npt.NDArray[Any]] = {
            "offsets": self.offsets,
            "starts": np.array([s.start for s in self.stretches], dtype=np.int64),
            "ends": np.array([s.end for s in self.stretches], dtype=np.int64),
            "strands": np.array([-1 if s.reverse else 1 for s in self.stretches], dtype=np.int8),
        }
        for name, values in beside.items():
            group.create_array(name, data=values)
        names = {
            "names": [s.name for s in self.stretches],
            "contigs": [s.contig for s in self.stretches],
        }
        group.attrs.update({**self.settings, **names})

    def _note(self, done: int) -> None:
        self.done = done
        fresh = self.partial / f".{_NOTE}"
        fresh.write_text(json.dumps({"done": done, "settings": self.settings}), encoding="utf-8")
        os.replace(fresh, self.partial / _NOTE)

    def write(self, number: int, pieces: Iterable[Rows]) -> None:
        """The rows of the next sequence; on disk at once but for less than a chunk."""
        size = self._array.chunks[0]
        for rows in pieces:
            self._held.append(rows)
            if (self._at + self._waiting) // size > self._at // size:
                self._flush((self._at + self._waiting) // size * size)
        if number + 1 == len(self.stretches):
            self._flush(self._at + self._waiting)
        assert self._at + self._waiting == self.offsets[number + 1]
        done = int(np.searchsorted(self.offsets, self._at, side="right")) - 1
        if done > (self.done or 0):
            self._note(done)

    @property
    def _waiting(self) -> int:
        return sum(len(rows) for rows in self._held)

    def _flush(self, end: int) -> None:
        """Write the rows before `end`."""
        if end == self._at:
            return
        joined = np.concatenate([rows for rows in self._held if len(rows)])
        count = end - self._at
        self._array[self._at : end] = joined[:count].astype(self._array.dtype)
        self._held, self._at = [joined[count:]], end

    def finish(self) -> None:
        """Let the output appear."""
        for name in (_NOTE, LOCK):
            (self.partial / name).unlink()
        if self.output.exists():
            shutil.rmtree(self.output)
        os.replace(self.partial, self.output)
