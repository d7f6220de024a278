"""The genome store: a Zarr v3 group with every base of a genome and labels beside them.

    genome.zarr/
      bases            uint8 [total]   the contigs one after another, case and N kept
      offsets          int64 [n + 1]   contig i is bases[offsets[i] : offsets[i + 1]]
      tracks/features  uint8 [total]   flags of `labels.Label`, legend in its attributes
      tracks/NAME      float32, bool or uint8 [total], numbers beside the bases: `data.tracks`
      attributes       format, sequence type, contig names, composition, sources with their SHA-256,
                       size and SHA-256 of every file (`corpus.store_sums`)

Chunks hold 4 MiB and are zstd frames with a checksum. Nothing in the folder depends on the time
or the machine: the same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    import zarr

FORMAT = "megatron-hyena genome store"
FORMAT_VERSION = 1
CHUNK = 1 << 22
"""Bytes of a chunk before compression."""


def create_array(group: zarr.Group, name: str, dtype: str, length: int) -> zarr.Array[Any]:
    """A new array [length] of `group`, NaN, False or 0 throughout, in chunks of `CHUNK` bytes.

    A chunk of nothing else has no file.
    """
    from zarr.codecs import ZstdCodec

    kind = np.dtype(dtype)
    return group.create_array(
        name,
        shape=(length,),
        chunks=(CHUNK // kind.itemsize,),
        dtype=dtype,
        fill_value=np.nan if kind.kind == "f" else 0,
        compressors=ZstdCodec(level=1, checksum=True),
    )


@dataclass(frozen=True)
class Contig:
    """One sequence: `length` bases from position `start` of the concatenated genome on."""

    name: str
    start: int
    length: int


@dataclass(frozen=True)
class Track:
    """One number or set of flags per base of the genome."""

    name: str
    store: GenomeStore
    array: zarr.Array[Any]

    @property
    def attributes(self) -> dict[str, Any]:
        """What the numbers mean; `tracks/features` has its bits under `legend`."""
        return dict(self.array.attrs)

    def read(self, contig: str, start: int, end: int) -> npt.NDArray[Any]:
        """Values [end - start] for bases [start, end) of `contig`; errors as `GenomeStore.read`."""
        return np.asarray(self.array[self.store.place(contig, start, end)])


@dataclass(frozen=True)
class GenomeStore:
    """A store opened for reading."""

    path: Path
    group: zarr.Group

    @classmethod
    def open(cls, path: Path | str) -> GenomeStore:
        """Open a folder that `write_store` made. Raises UserError where it is none."""
        import zarr

        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise UserError(f"{path} is no genome store; make one with tools.prepare_genome")
        group = zarr.open_group(str(path), mode="r", zarr_format=3)
        found = (group.attrs.get("format"), group.attrs.get("format_version"))
        if found != (FORMAT, FORMAT_VERSION):
            raise UserError(
                f"{path} is a Zarr group of format {found[0]!r}, version {found[1]!r}, not "
                f"{FORMAT!r}, version {FORMAT_VERSION}; make it anew with tools.prepare_genome"
            )
        return cls(path, group)

    @cached_property
    def contigs(self) -> list[Contig]:
        """The sequences in the order of the FASTA files."""
        offsets = np.asarray(self._array("offsets")).tolist()
        names = self.attributes["contigs"]
        return [
            Contig(name, start, end - start)
            for name, start, end in zip(names, offsets, offsets[1:], strict=False)
        ]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Contig names, composition in bases, and the source files with size and SHA-256."""
        return dict(self.group.attrs)

    @property
    def type(self) -> SequenceType:
        """What its records are made of; DNA where the store does not tell."""
        return SequenceType.named(self.attributes.get("type", "dna"))

    @property
    def total(self) -> int:
        """Bases of all contigs together."""
        return self.contigs[-1].start + self.contigs[-1].length

    @property
    def tracks(self) -> list[str]:
        """Names of the tracks."""
        import zarr

        tracks = self.group.get("tracks")
        return sorted(tracks.array_keys()) if isinstance(tracks, zarr.Group) else []

    def read(self, contig: str, start: int, end: int) -> Bases:
        """Bases uint8 [end - start] of [start, end) of `contig`.

        Raises UserError for an unknown contig or a stretch that is not inside it.
        """
        place = self.place(contig, start, end)
        size = self._chunk_size
        parts = [
            self._chunk(i)[max(0, place.start - i * size) : place.stop - i * size]
            for i in range(place.start // size, -(-place.stop // size))
        ]
        return np.concatenate([*parts, np.empty(0, dtype=np.uint8)])

    def track(self, name: str) -> Track:
        """The track `name`; raises UserError where there is none."""
        if name not in self.tracks:
            raise UserError(f"{self.path} has no track {name!r}; it has {self.tracks}")
        return Track(name, self, self._array(f"tracks/{name}"))

    def place(self, contig: str, start: int, end: int) -> slice:
        """Where [start, end) of `contig` lies in the concatenated arrays."""
        found = self._by_name.get(contig)
        if found is None:
            raise UserError(f"{self.path} has no contig {contig!r}; see its list of contigs")
        if not 0 <= start <= end <= found.length:
            raise UserError(
                f"{self.path}: {contig}:{start}-{end} is not inside the contig, which has "
                f"{found.length} bases; ask for less"
            )
        return slice(found.start + start, found.start + end)

    def _array(self, name: str) -> zarr.Array[Any]:
        import zarr

        array = self.group.get(name)
        if not isinstance(array, zarr.Array):
            raise UserError(f"{self.path} lacks its array {name!r}; run tools.prepare_genome again")
        return array

    @cached_property
    def _chunk_size(self) -> int:
        return int(self._array("bases").chunks[0])

    @cached_property
    def _chunk(self) -> Callable[[int], Bases]:
        """Decompress a chunk of `bases`; the last two are kept for neighbouring reads."""
        array, size = self._array("bases"), self._chunk_size
        return lru_cache(maxsize=2)(lambda i: np.asarray(array[i * size : (i + 1) * size]))

    @cached_property
    def _by_name(self) -> dict[str, Contig]:
        return {contig.name: contig for contig in self.contigs}
