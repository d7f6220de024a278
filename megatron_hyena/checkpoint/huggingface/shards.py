"""Weights as safetensors files of a bounded size, written one tensor at a time.

    model.safetensors                                 where one file holds all
    model-00001-of-00003.safetensors …                else, and
    model.safetensors.index.json                      which names each tensor's file

No more than one tensor is in memory, however large the files are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from megatron_hyena.errors import UserError

INDEX = "model.safetensors.index.json"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)")


def size_in_bytes(text: str) -> int:
    """`5GB`, `200MB` or `10KB` (powers of ten) in bytes; UserError for anything else."""
    found = _SIZE.fullmatch(text.strip().upper())
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if not size:
        raise UserError(f"--max-shard-size {text!r} is not a size such as 5GB or 200MB")
    return size


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Tensor], limit: int
) -> None:
    """Write `tensors` to `folder`, in files of at most `limit` bytes of weights.

    A tensor that is larger than that has a file of its own.

    Args:
        folder: exists.
        tensors: loads a tensor when it is asked for it by name.
        described: the same names, with tensors of the same shapes and dtypes (on the meta device).
    Raises:
        UserError: a tensor is missing or has another shape.
    """
    if missing := sorted(described.keys() - tensors.keys()):
        raise UserError(f"the checkpoint has no {missing[0]} ({len(missing)} tensors are missing)")
    parts = _parts(described, limit)
    if len(parts) == 1:
        write_file(folder / "model.safetensors", tensors, parts[0])
        return
    names = [f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        write_file(folder / name, tensors, part)
    index = {
        "metadata": {"total_size": sum(map(_bytes, described.values()))},
        "weight_map": {key: n for n, part in zip(names, parts, strict=True) for key in part},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _parts(described: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in described.items():
        if parts[-1] and held + _bytes(tensor) > limit:
            parts.append({})
            held = 0
        parts[-1][name] = tensor
        held += _bytes(tensor)
    return parts


def write_file(path: Path, tensors: Mapping[str, Tensor], part: Mapping[str, Tensor]) -> None:
    """Write the tensors that `part` describes to one file, one at a time.

    The safetensors format: length of the header, header, tensors without gaps.
    """
    # Wide dtypes first, so that every tensor is aligned.
    ordered = sorted(part.items(), key=lambda item: -item[1].element_size())
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, wanted in ordered:
        end = start + _bytes(wanted)
        shape = list(wanted.shape)
        header[name] = {"dtype": DTYPES[wanted.dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, wanted in ordered:
            file.write(_raw(name, tensors[name], wanted))


def _raw(name: str, found: Tensor, wanted: Tensor) -> memoryview:
    if found.shape != wanted.shape:
        raise UserError(
            f"{name} has shape {list(found.shape)}, the model of this configuration "
            f"{list(wanted.shape)}; give a checkpoint and its own configuration"
        )
    plain = found.detach().to("cpu", wanted.dtype).contiguous().reshape(-1)
    raw: memoryview = plain.view(torch.uint8).numpy().data
    return raw
