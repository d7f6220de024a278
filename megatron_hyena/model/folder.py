"""A dense model as a folder: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.saved import CONFIG, existing
from megatron_hyena.errors import UserError

WEIGHTS = "model.safetensors"


def write_folder(folder: Path, config: HyenaGLTConfig, parameters: Mapping[str, Tensor]) -> None:
    """Write both files, each under a hidden name first; older ones are replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous() for name, p in parameters.items()}
    hidden = {name: folder / f".{name}.{os.getpid()}" for name in (WEIGHTS, CONFIG)}
    try:
        save_file(tensors, hidden[WEIGHTS], metadata={"format": "pt"})
        text = json.dumps(asdict(config), indent=2) + "\n"
        hidden[CONFIG].write_text(text, encoding="utf-8")
        for name, path in hidden.items():
            os.replace(path, folder / name)
    finally:
        for path in hidden.values():
            path.unlink(missing_ok=True)


@torch.no_grad()
def read_weights(folder: Path, parameters: Mapping[str, Tensor]) -> None:
    """Copy `model.safetensors` into `parameters` (and buffers).

    Raises:
        UserError: missing, damaged, or with other tensors.
    """
    path = existing(folder / WEIGHTS)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); save or copy the model again") from error
    surplus = sorted(parameters.keys() ^ tensors.keys())
    if surplus:
        raise UserError(
            f"{path}: tensors that only the file or only the model of {CONFIG} has: "
            f"{', '.join(surplus)}; give the two files of one model"
        )
    for name, parameter in parameters.items():
        found, wanted = list(tensors[name].shape), list(parameter.shape)
        if found != wanted:
            raise UserError(
                f"{path}: {name} has shape {found}, the model of {CONFIG} {wanted}; "
                "give the two files of one model"
            )
        parameter.copy_(tensors[name])
