"""Files of tensors, written one tensor at a time: safetensors, and what torch.save writes.

What is not yet written is not yet loaded, so memory holds one tensor of the model.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from megatron_hyena.checkpoint.exchange.tensors import Kind, Tensors
from megatron_hyena.checkpoint.huggingface.shards import write_file

_PIECE = 1 << 24


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Write `tensors` to one .safetensors file."""
    write_file(path, tensors, tensors.shadows())


def write_torch(
    path: Path, tensors: Tensors, arrange: Callable[[Mapping[str, Tensor]], Any] = dict
) -> None:
    """Write what `arrange` makes of `tensors` (plain containers of them) as `torch.save` does.

    First everything but the tensors' data is written, then each tensor into the place left for it,
    and its sum into the archive.
    """
    with FakeTensorMode():
        fakes = {n: torch.empty(k.shape, dtype=k.dtype) for n, k in tensors.kinds.items()}
        whole = arrange(fakes)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(whole, path)
    with FakeTensorMode():
        places = torch.load(path, weights_only=False)
    sums: dict[int, int] = {}
    name_of = {id(fake): name for name, fake in fakes.items()}
    with path.open("r+b") as file:
        for fake, place in zip(tree_leaves(whole), tree_leaves(places), strict=True):
            if isinstance(fake, Tensor):
                name = name_of[id(fake)]
                at = place.untyped_storage()._checkpoint_offset
                file.seek(at)
                sums[at] = _write(file, name, tensors[name], tensors.kinds[name])
    with zipfile.ZipFile(path) as archive:
        members, directory = archive.infolist(), archive.start_dir
    with path.open("r+b") as file:
        _write_sums(file, members, directory, sums)
        file.flush()
        os.fsync(file.fileno())


def _write_sums(
    file: BinaryIO, members: list[zipfile.ZipInfo], directory: int, sums: Mapping[int, int]
) -> None:
    """Set the CRC-32 of members in a zip archive, given by where their data begins.

    A sum stands in the central directory, and in the descriptor behind the data.
    """
    for member in members:
        file.seek(directory)
        entry = file.read(46)
        file.seek(member.header_offset)
        data = member.header_offset + 30 + sum(struct.unpack("<2H", file.read(30)[26:]))
        if data in sums:
            crc = struct.pack("<I", sums[data])
            file.seek(directory + 16)
            file.write(crc)
            file.seek(data + member.file_size)
            if file.read(4) == b"PK\x07\x08":
                file.write(crc)
        directory += 46 + sum(struct.unpack("<3H", entry[28:34]))


def _write(file: BinaryIO, name: str, tensor: Tensor, kind: Kind) -> int:
    """Write the numbers of a tensor; their CRC-32."""
    found = Kind(tuple(tensor.shape), tensor.dtype)
    assert found == kind, f"{name}: {kind} was promised, {found} came"
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    crc = 0
    for piece in data.split(_PIECE):
        raw = piece.numpy().data
        file.write(raw)
        crc = zlib.crc32(raw, crc)
    return crc
