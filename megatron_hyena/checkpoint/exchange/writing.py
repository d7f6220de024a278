"""Files of tensors, written one tensor at a time: safetensors, and what torch.save writes.

What is not yet written is not yet loaded, so memory holds one tensor of the model.
"""

from __future__ import annotations

import os
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
