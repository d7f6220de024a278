"""Parameter groups: what decays, and what has its own learning rate."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from megatron_hyena.config.sections import OptimSection
from megatron_hyena.layers.parameter import Role, cut_of


def parameter_groups(module: nn.Module, optim: OptimSection) -> list[dict[str, Any]]:
    """Optimizer groups by the `role` of each parameter's `Cut`; empty groups are left out.

    Matrices decay; norms, biases, filters and routers do not. Filters and routers have a factor on
    the learning rate, kept in the group under `lr_factor`.
    """
    factors = {"filter": optim.filter_lr_factor, "router": optim.router_lr_factor}
    groups = []
    for role in get_args(Role):
        members = [p for p in module.parameters() if cut_of(p).role == role]
        if members:
            groups.append(
                {
                    "params": members,
                    "name": role,
                    "weight_decay": optim.weight_decay if role == "matrix" else 0.0,
                    "lr_factor": factors.get(role, 1.0),
                }
            )
    return groups
