"""Adam's moments, made before the first step.

AdamW creates its state lazily, at the first step. DeepSpeed links parameters to their state right
after the first group has stepped, when the other groups have none yet, and never again; a resumed
run needs the state before any step. So it is made here, equal to what AdamW would make.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def prepare_moments(optimizer: Any, stage: int) -> None:
    """Create zero moments and step counts of an AdamW, bare (stage 0) or under ZeRO."""
    adam = _adam(optimizer)
    if stage == 3:
        held: list[Tensor] = list(optimizer.fp32_partitioned_groups_flat)
    else:
        held = [p for group in adam.param_groups for p in group["params"]]
    for parameter in held:
        adam.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    if stage in (1, 2):
        optimizer._lazy_init_hp_params_optimizer_state()


def set_step_count(optimizer: Any, stage: int, step: int) -> None:
    """Tell AdamW that `step` steps of the run are done (its bias correction depends on it).

    A group counts those since it `begins`.
    """
    for group, held in _held_by_group(optimizer, stage):
        for parameter in held:
            _adam(optimizer).state[parameter]["step"].fill_(max(0.0, float(step - group["begins"])))


def restart_waiting(optimizer: Any, stage: int, step: int) -> None:
    """After step number `step`: groups that begin later have counted none of it."""
    for group, held in _held_by_group(optimizer, stage):
        if group["begins"] > step:
            for parameter in held:
                _adam(optimizer).state[parameter]["step"].zero_()


def _held_by_group(optimizer: Any, stage: int) -> list[tuple[dict[str, Any], list[Tensor]]]:
    """Each group and what AdamW has state of: parameters, or their flat shares under ZeRO."""
    groups = _adam(optimizer).param_groups
    if stage < 3:
        return [(group, group["params"]) for group in groups]
    shares: list[Tensor] = list(optimizer.fp32_partitioned_groups_flat)
    return [
        (group, [t for i, t in enumerate(shares) if optimizer.sub_group_to_group_id[i] == number])
        for number, group in enumerate(groups)
    ]


def _adam(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
