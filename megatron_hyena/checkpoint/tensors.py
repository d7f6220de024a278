"""Tensors of a checkpoint: one file per tensor rank, re-cut for any other number of ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from megatron_hyena.checkpoint.format import Manifest, tensor_file
from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import Cut

WEIGHT, BUFFER = "weight", "buffer"
MOMENTS = ("exp_avg", "exp_avg_sq")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> int:
    """Write one rank's tensors (keys `kind/parameter`) and flush them; returns the bytes."""
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path.stat().st_size


def read_parameters(
    folder: Path, manifest: Manifest, kinds: Iterable[str], rank: int = 0, size: int = 1
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each parameter's tensors, cut for `rank` of `size`, whatever it was saved with.

    Yields:
        (parameter name, {kind: tensor}).
    Raises:
        UserError: a file cannot be read.
    """
    saved = manifest.tensor_size
    with ExitStack() as stack:
        try:
            files = [
                stack.enter_context(safe_open(folder / tensor_file(r, saved), framework="pt"))
                for r in range(saved)
            ]
        except Exception as error:
            raise UserError(f"{folder}: cannot read its tensors: {error}") from error
        for name, described in manifest.parameters.items():
            cut = Cut(
                tuple(described["shape"]),
                init=_never,
                dim=described["dim"],
                blocks=described["blocks"],
            )
            yield name, {kind: _recut(files, f"{kind}/{name}", cut, rank, size) for kind in kinds}


def read_buffers(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """State that is neither cut nor trained by the optimizer, by name; every rank saved it."""
    path = folder / tensor_file(0, manifest.tensor_size)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(f"{BUFFER}/{name}") for name in manifest.buffers}
    except Exception as error:
        raise UserError(f"{path}: cannot read its tensors: {error}") from error


def _recut(files: list[safe_open], key: str, cut: Cut, rank: int, size: int) -> Tensor:
    if len(files) == size:
        part: Tensor = files[rank].get_tensor(key)
        return part
    return cut.take(cut.join([file.get_tensor(key) for file in files]), rank, size)


def _never(full: Tensor, generator: object) -> None:
    raise AssertionError("a saved parameter is never drawn")
