"""Where a fine-tuning run's weights come from: a checkpoint of pretraining, or a saved folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_hyena.checkpoint.format import MANIFEST, read_manifest, resolve_checkpoint
from megatron_hyena.checkpoint.tensors import WEIGHT, read_buffers, read_parameters
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.folder import CONFIG, WEIGHTS, read_config
from megatron_hyena.model.hyena_glt import HyenaGLT

BEST = "best"
"""Folder of a fine-tuning run that holds its model."""


@dataclass(frozen=True)
class Source:
    """A folder that holds a trained model: a checkpoint, or one of `save_pretrained`."""

    folder: Path
    checkpoint: bool
    config: HyenaGLTConfig


def find_source(path: str) -> Source:
    """The model that `finetune.from` means; of a fine-tuning run, its best.

    Raises:
        UserError: nothing there that holds a model, or it is damaged.
    """
    folder = Path(path)
    if (folder / BEST / CONFIG).is_file():
        folder = folder / BEST
    if (folder / CONFIG).is_file():
        return Source(folder, False, read_config(folder))
    try:
        found = resolve_checkpoint(folder)
    except UserError as error:
        raise UserError(
            f"finetune.from={path}: neither a run folder or checkpoint ({MANIFEST}) nor a folder "
            f"of save_pretrained ({CONFIG}); train a model first, or name another folder"
        ) from error
    return Source(found, True, HyenaGLTConfig(**read_manifest(found).model))


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
