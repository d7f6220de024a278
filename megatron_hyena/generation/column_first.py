"""Matrices in the memory order that suits one vector at a time on a CPU."""

from __future__ import annotations

import torch

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT


@torch.no_grad()
def column_first(model: HyenaGLT) -> HyenaGLT:
    """Store the matrices of the model's blocks by their longer side, in place; the model.

    That is column by column unless a row is longer. Shapes and values stay, so the model computes,
    trains and is saved as before. A product with one vector then reads a matrix in long runs: in up
    to half the time where matrices do not fit in the cache. One matrix at a time is copied.
    """
    for parameter in model.blocks.parameters():
        if parameter.dim() != 2 or cut_of(parameter).role != "matrix":
            continue
        if parameter.shape[0] >= parameter.shape[1]:
            parameter.data = parameter.data.t().contiguous().t()
    return model
