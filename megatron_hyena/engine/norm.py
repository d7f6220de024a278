"""The norm of the whole gradient, each parameter counted once."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.parallel.mesh import Mesh


def gradient_norm(module: nn.Module, mesh: Mesh) -> Tensor:
    """sqrt of the sum of squares of all gradients, fp32 scalar, equal on every tensor rank.

    Parts of cut parameters are summed over the tensor ranks; replicated ones count on the first.
    """
    counted = [
        p.grad
        for p in module.parameters()
        if p.grad is not None and (cut_of(p).dim is not None or mesh.tensor_rank == 0)
    ]
    none = torch.zeros((), device=next(module.parameters()).device)
    total = torch.stack([none, *[g.float().square().sum() for g in counted]]).sum()
    dist.all_reduce(total, group=mesh.tensor)
    return total.sqrt()
