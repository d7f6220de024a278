"""Parameter groups: what decays, and what has its own learning rate."""

from __future__ import annotations

from typing import Any, get_args

from torch import nn

from megatron_hyena.config.sections import OptimSection
from megatron_hyena.layers.parameter import Role, Treatment, cut_of, treatment_of


def parameter_groups(module: nn.Module, optim: OptimSection) -> list[dict[str, Any]]:
    """Optimizer groups by role and treatment of the parameters that are trained; none is empty.

    Matrices decay; norms, biases, filters and routers do not. Filters and routers have a factor on
    the learning rate, kept in the group under `lr_factor` with that of the treatment; a group moves
    from step `begins` on.
    """
    factors = {"filter": optim.filter_lr_factor, "router": optim.router_lr_factor}
    members: dict[tuple[Role, Treatment], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            key = cut_of(parameter).role, treatment_of(parameter)
            members.setdefault(key, []).append(parameter)
    roles = get_args(Role)
    return [
        {
            "params": members[role, treatment],
            "name": role,
            "weight_decay": optim.weight_decay if role == "matrix" else 0.0,
            "lr_factor": factors.get(role, 1.0) * treatment.lr_factor,
            "begins": treatment.begins,
        }
        for role, treatment in sorted(members, key=lambda key: roles.index(key[0]))
    ]
