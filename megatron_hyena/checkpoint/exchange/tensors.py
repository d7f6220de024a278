"""Tensors that are loaded when they are asked for, one at a time.

A `Tensors` knows all names, shapes and dtypes and holds no data. Reading maps the file anew for
each tensor, so what was read before does not stay in memory.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_hyena.checkpoint.format import Manifest
from megatron_hyena.checkpoint.huggingface.shards import DTYPES as SAFETENSORS
from megatron_hyena.checkpoint.huggingface.shards import INDEX
from megatron_hyena.checkpoint.tensors import WEIGHT, read_buffers, read_parameters
from megatron_hyena.errors import UserError

KEPT_MAPPED = 16 << 20
"""Bytes of a .pt file that may stay mapped before it is mapped anew."""
DTYPES = {name: dtype for dtype, name in SAFETENSORS.items()}
"""safetensors' names."""


@dataclass(frozen=True)
class Kind:
    """Shape and dtype of a tensor that is not there yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def meta(self) -> Tensor:
        """A tensor of this kind without data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, each loaded by every access; `kinds` tells of them without loading."""

    def __init__(self, kinds: Mapping[str, Kind], load: Callable[[str], Tensor]) -> None:
        self.kinds, self._load = dict(kinds), load

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.kinds:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def shadows(self) -> dict[str, Tensor]:
        """Tensors of these kinds without data, by name."""
        return {name: kind.meta() for name, kind in self.kinds.items()}

    def renamed(self, new_name: Callable[[str], str]) -> Tensors:
        """The same under other names."""
        old = {new_name(name): name for name in self.kinds}
        kinds = {new: self.kinds[name] for new, name in old.items()}
        return Tensors(kinds, lambda name: self[old[name]])

    def only(self, names: Mapping[str, Any] | set[str]) -> Tensors:
        """Those of `names` alone."""
        return Tensors({n: k for n, k in self.kinds.items() if n in names}, self.__getitem__)

    def cast(self, dtype_of: Callable[[str], torch.dtype]) -> Tensors:
        """The same in the dtypes that `dtype_of` gives by name."""
        kinds = {n: Kind(k.shape, dtype_of(n)) for n, k in self.kinds.items()}
        return Tensors(kinds, lambda name: self[name].to(kinds[name].dtype))


def held(tensors: Mapping[str, Tensor]) -> Tensors:
    """Tensors that are in memory already."""
    kinds = {name: Kind(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    return Tensors(kinds, lambda name: tensors[name])


def from_checkpoint(folder: Path, manifest: Manifest) -> Tensors:
    """Weights and buffers of one of our checkpoints, whole, of whatever tensor ranks; fp32."""
    buffers = read_buffers(folder, manifest)
    kinds = {n: Kind(tuple(d["shape"])) for n, d in manifest.parameters.items()}
    kinds |= {n: Kind(tuple(t.shape), t.dtype) for n, t in buffers.items()}

    def load(name: str) -> Tensor:
        if name in buffers:
            return buffers[name]
        alone = dataclasses.replace(manifest, parameters={name: manifest.parameters[name]})
        ((_, found),) = read_parameters(folder, alone, [WEIGHT])
        return found[WEIGHT]

    return Tensors(kinds, load)


def from_safetensors(path: Path) -> Tensors:
    """Tensors of a .safetensors file, or of a folder with one or an index of shards.

    Raises:
        UserError: no such file, a damaged one, or an index that names a tensor no shard has.
    """
    if path.is_dir():
        return _from_shards(path)
    kinds = _kinds_of(path)

    def load(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            found: Tensor = file.get_tensor(name)
            return found

    return Tensors(kinds, load)


def _kinds_of(path: Path) -> dict[str, Kind]:
    try:
        with safe_open(path, framework="pt") as file:
            kinds = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                part = file.get_slice(name)
                kinds[name] = Kind(tuple(part.get_shape()), DTYPES[part.get_dtype()])
            return kinds
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; give the whole checkpoint") from error
    except Exception as error:
        raise UserError(f"{path}: damaged ({error}); copy or download it again") from error


def _from_shards(folder: Path) -> Tensors:
    index = folder / INDEX
    if not index.is_file():
        return from_safetensors(folder / "model.safetensors")
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not an index of shards ({error}); download it again") from error
    shards = {file: from_safetensors(folder / file) for file in sorted(set(places.values()))}
    for name, file in places.items():
        if name not in shards[file]:
            raise UserError(f"{folder / file}: has no {name}, which {index.name} says it has")
    kinds = {name: shards[file].kinds[name] for name, file in places.items()}
    return Tensors(kinds, lambda name: shards[places[name]][name])


class MappedFile:
    """A file of `torch.save`, mapped, and mapped anew whenever `KEPT_MAPPED` bytes were taken.

    `find` gives the tensors by name in what `load` returns; `others` are names of what is none.
    """

    def __init__(
        self,
        path: Path,
        find: Callable[[Any], Mapping[str, Any]],
        load: Callable[[Path], Any] | None = None,
    ) -> None:
        self.path, self.find, self.load, self.taken = path, find, load or load_torch, 0
        self.content = self._open()

    def _open(self) -> dict[str, Tensor]:
        found = self.find(self.load(self.path))
        self.others = sorted(name for name, t in found.items() if not isinstance(t, Tensor))
        return {name: t for name, t in found.items() if isinstance(t, Tensor)}

    def tensors(self) -> Tensors:
        """The tensors, each loaded when asked for."""
        kinds = {n: Kind(tuple(t.shape), t.dtype) for n, t in self.content.items()}
        return Tensors(kinds, self._take)

    def _take(self, name: str) -> Tensor:
        if self.taken > KEPT_MAPPED:
            self.content, self.taken = {}, 0
            self.content = self._open()
        found = self.content[name]
        self.taken += found.numel() * found.element_size()
        return found.detach()


def from_torch(path: Path, find: Callable[[Any], Mapping[str, Any]] = dict) -> Tensors:
    """Tensors of a file of `torch.save`; by default a flat dict.

    Raises:
        UserError: missing, damaged, or of objects that only its own program can open.
    """
    return MappedFile(path, find).tensors()


def load_torch(path: Path) -> Any:
    """What `torch.save` wrote, mapped into memory; no code of the file is run.

    FP8 models hold streams of bytes beside their tensors, which are let through.

    Raises:
        UserError: missing, damaged, or of objects that only its own program can open.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; give the whole checkpoint")
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path}: cannot be read as tensors ({first}); copy or download it again"
        ) from error
