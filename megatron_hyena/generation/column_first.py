"""Matrices in the memory order that suits one vector at a time on a CPU."""

from __future__ import annotations

import torch

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT


@torch.no_grad()
def column_first(model: HyenaGLT) -> HyenaGLT:
    """Store every matrix of the model's blocks column by column, in place; the model.

    Shapes and values stay, so the model computes, trains and is saved as before. A product of few
    rows with such a matrix reads it in long runs: a step then takes half the time where matrices
    do not fit in the cache. One matrix at a time is copied.
    """
    for parameter in model.blocks.parameters():
        if parameter.dim() == 2 and cut_of(parameter).role == "matrix":
            parameter.data = parameter.data.t().contiguous().t()
    return model
