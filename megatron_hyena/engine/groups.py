"""Parameter groups: what decays, and what has its own learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from megatron_hyena.config.sections import OptimSection
from megatron_hyena.layers.parameter import cut_of


def parameter_groups(module: nn.Module, optim: OptimSection) -> list[dict[str, Any]]:
    """Optimizer groups by the `role` of each parameter's `Cut`; empty groups are left out.

    Matrices decay. Norms, biases and filters do not; filters have a learning-rate factor, kept in
    the group under `lr_factor`.
    """
    groups = []
    for role in ("matrix", "vector", "filter"):
        members = [p for p in module.parameters() if cut_of(p).role == role]
        if members:
            groups.append(
                {
                    "params": members,
                    "name": role,
                    "weight_decay": optim.weight_decay if role == "matrix" else 0.0,
                    "lr_factor": optim.filter_lr_factor if role == "filter" else 1.0,
                }
            )
    return groups
