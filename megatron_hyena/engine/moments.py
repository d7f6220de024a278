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


def set_step_count(optimizer: Any, step: int) -> None:
    """Tell AdamW that `step` steps are done (its bias correction depends on it)."""
    for state in _adam(optimizer).state.values():
        state["step"].fill_(float(step))


def _adam(optimizer: Any) -> torch.optim.Optimizer:
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner
