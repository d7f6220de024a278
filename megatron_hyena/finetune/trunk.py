"""The weights of a fine-tuning run's source, copied into each rank's share of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_hyena.checkpoint.format import read_manifest
from megatron_hyena.checkpoint.tensors import WEIGHT, read_buffers, read_parameters
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.source import Source
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.folder import WEIGHTS
from megatron_hyena.model.hyena_glt import HyenaGLT


@torch.no_grad()
def load_trunk(trunk: HyenaGLT, source: Source, rank: int, size: int) -> None:
    """Copy weights into a rank's share of the model; the state of merging's rates, too.

    Raises:
        UserError: a file cannot be read or holds other tensors than the model has.
    """
    parameters = dict(trunk.named_parameters())
    if source.checkpoint:
        manifest = read_manifest(source.folder)
        _check_names(source.folder, parameters, manifest.parameters)
        for name, tensors in read_parameters(source.folder, manifest, [WEIGHT], rank, size):
            parameters[name].copy_(tensors[WEIGHT])
        saved = read_buffers(source.folder, manifest)
    else:
        whole = read_tensors(source.folder / WEIGHTS)
        state = rate_state(trunk)
        saved = {name: whole.pop(name) for name in state if name in whole}
        _check_names(source.folder, parameters, whole)
        for name, parameter in parameters.items():
            parameter.copy_(cut_of(parameter).take(whole[name], rank, size))
    buffers = rate_state(trunk)
    for name, value in saved.items():
        buffers[name].copy_(value)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file (UserError: missing or damaged)."""
    if not path.is_file():
        raise UserError(f"{path}: not found; give a complete folder")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); save or copy it again") from error


def _check_names(folder: Path, wanted: Mapping[str, object], found: Mapping[str, object]) -> None:
    differing = sorted(wanted.keys() ^ found.keys())
    if differing:
        where = "the model" if differing[0] in wanted else "the folder"
        raise UserError(
            f"{folder}: {differing[0]!r} is a parameter of {where} alone ({len(differing)} such); "
            "it was written by another version, or holds more than a language model: a fine-tuned "
            "run's model is in its folder best"
        )
