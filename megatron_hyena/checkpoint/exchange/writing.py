"""Files of tensors, written one tensor at a time: safetensors, shards of it, and torch.save's form.

What is not yet written is not yet loaded, so memory holds one tensor of the model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from megatron_hyena.checkpoint.exchange.tensors import DTYPES, Kind, Tensors
from megatron_hyena.errors import UserError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SHARD_BYTES = 5 * 10**9
_PIECE = 1 << 24


def write_safetensors(path: Path, tensors: Tensors, names: list[str] | None = None) -> None:
    """Write `tensors` (those of `names`) to `path`; flushed to disk."""
    # The widest first, as the library writes them: then each begins at a multiple of its width.
    wanted = list(tensors) if names is None else names
    order = sorted(wanted, key=lambda n: (-tensors.kinds[n].dtype.itemsize, n))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in order:
        kind = tensors.kinds[name]
        header[name] = {
            "dtype": _NAMES[kind.dtype],
            "shape": list(kind.shape),
            "data_offsets": [at, at + kind.bytes],
        }
        at += kind.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            _write(file, name, tensors[name], tensors.kinds[name])
        _flush(file)


def write_shards(folder: Path, tensors: Tensors, most: int = _SHARD_BYTES) -> list[str]:
    """Write shards of at most `most` bytes, or one larger tensor, and their index; their names.

    As the Hugging Face hub names them; a single shard is `model.safetensors`, without an index.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, kind in tensors.kinds.items():
        if shards[-1] and size + kind.bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += kind.bytes
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return ["model.safetensors"]
    files = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    places = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    for file, names in zip(files, shards, strict=True):
        write_safetensors(folder / file, tensors, names)
    total = sum(kind.bytes for kind in tensors.kinds.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    text = json.dumps(index, indent=2) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return files


def write_torch(
    path: Path, tensors: Tensors, arrange: Callable[[Mapping[str, Tensor]], Any] = dict
) -> None:
    """Write what `arrange` makes of `tensors` (plain containers of them) as `torch.save` does.

    First everything but the tensors' data is written, then each tensor into the place left for it.
    The sums of these places in the zip archive stay unset, which `torch.load` does not read.
    """
    with FakeTensorMode():
        fakes = {n: torch.empty(k.shape, dtype=k.dtype) for n, k in tensors.kinds.items()}
        whole = arrange(fakes)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(whole, path)
    with FakeTensorMode():
        places = torch.load(path, weights_only=False)
    name_of = {id(fake): name for name, fake in fakes.items()}
    with path.open("r+b") as file:
        for fake, place in zip(tree_leaves(whole), tree_leaves(places), strict=True):
            if isinstance(fake, Tensor):
                name = name_of[id(fake)]
                file.seek(place.untyped_storage()._checkpoint_offset)
                _write(file, name, tensors[name], tensors.kinds[name])
        _flush(file)


def _write(file: BinaryIO, name: str, tensor: Tensor, kind: Kind) -> None:
    found = Kind(tuple(tensor.shape), tensor.dtype)
    assert found == kind, f"{name}: {kind} was promised, {found} came"
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    for piece in data.split(_PIECE):
        file.write(piece.numpy().tobytes())


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def shard_bytes(text: str) -> int:
    """Bytes of a size such as `5GB` or `200MB` (powers of 1000).

    Raises:
        UserError: not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", text.strip(), re.IGNORECASE)
    if not match:
        raise UserError(f"--max-shard-size {text!r} is no size such as 5GB or 200MB")
    return int(float(match[1]) * 1000 ** ("KMG".index(match[2][0].upper()) + 1))
