"""Native folders: what `HyenaGLT.from_pretrained` reads, written one tensor at a time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_hyena.checkpoint.exchange.lossy import LOSSY, Losses
from megatron_hyena.checkpoint.exchange.origin import read_origin, write_origin
from megatron_hyena.checkpoint.exchange.tensors import from_safetensors
from megatron_hyena.checkpoint.exchange.weights import Weights
from megatron_hyena.checkpoint.exchange.writing import write_safetensors
from megatron_hyena.config.saved import CONFIG, read_config
from megatron_hyena.data.atomic import atomic_folder
from megatron_hyena.model.folder import WEIGHTS


def read_native(folder: Path) -> Weights:
    """A folder of `save_pretrained` or `--to native`, with its origin if it has one.

    Raises:
        UserError: a file is missing or damaged, or is of another model.
    """
    config = read_config(folder)
    tensors = from_safetensors(folder / WEIGHTS)
    return Weights(config, tensors, folder, read_origin(folder)).check()


def write_native(
    weights: Weights, folder: Path, losses: Losses, dtype: torch.dtype | None
) -> list[str]:
    """Write `weights` to `folder`, which appears whole; an older one is replaced. Returns notes."""
    tensors = weights.tensors.cast(lambda name: dtype or weights.tensors.kinds[name].dtype)
    with atomic_folder(folder, marker=CONFIG, overwrite=True) as building:
        write_safetensors(building / WEIGHTS, tensors)
        text = json.dumps(asdict(weights.config), indent=2) + "\n"
        (building / CONFIG).write_text(text, encoding="utf-8")
        if weights.origin is not None:
            write_origin(building, weights.origin)
        losses.write(building / LOSSY)
    return []
