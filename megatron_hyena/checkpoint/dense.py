"""A checkpoint as the dense model, for evaluation and for other programs. Needs torch only."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_hyena.checkpoint.format import read_manifest, resolve_checkpoint
from megatron_hyena.checkpoint.tensors import WEIGHT, read_buffers, read_parameters
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.model.hyena_glt import HyenaGLT


def load_dense(path: str | Path) -> tuple[HyenaGLT, Path]:
    """The dense fp32 model of a run folder or checkpoint, and the checkpoint it came from.

    Raises:
        UserError: no complete checkpoint there, unreadable, or of another version's model.
    """
    folder = resolve_checkpoint(path)
    manifest = read_manifest(folder)
    model = HyenaGLT(HyenaGLTConfig(**manifest.model))
    parameters = dict(model.named_parameters())
    if differing := sorted(parameters.keys() ^ manifest.parameters.keys()):
        raise UserError(
            f"{folder} was written by another version of the model: {differing[0]!r} is a "
            f"parameter of only one of the two ({len(differing)} are); read it with that version"
        )
    with torch.no_grad():
        for name, tensors in read_parameters(folder, manifest, [WEIGHT]):
            parameters[name].copy_(tensors[WEIGHT])
        buffers = rate_state(model)
        for name, saved in read_buffers(folder, manifest).items():
            buffers[name].copy_(saved)
    return model.eval(), folder
