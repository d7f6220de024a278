"""The engine's state as whole tensors: weights and Adam moments by parameter name.

ZeRO spreads them over data ranks in flat partitions; here they are gathered and set one parameter
at a time through DeepSpeed's fragment interface, so what is saved does not depend on the ZeRO stage
or on the number of data ranks. All functions are collective over the data group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor

from megatron_hyena.checkpoint.tensors import MOMENTS, WEIGHT
from megatron_hyena.engine.engine import Engine
from megatron_hyena.engine.moments import set_step_count


def read_state(engine: Engine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, {weight, exp_avg, exp_avg_sq}) of this tensor rank, in fp32."""
    for name, parameter in engine.model.named_parameters():
        if engine.config.parallel.zero_stage == 0:
            state = engine.optimizer.state[parameter]
            yield name, {WEIGHT: parameter, **{m: state[m] for m in MOMENTS}}
        else:
            moments = {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
            yield name, {WEIGHT: safe_get_full_fp32_param(parameter), **moments}


@torch.no_grad()
def write_state(
    engine: Engine, tensors: Iterator[tuple[str, dict[str, Tensor]]], step: int
) -> None:
    """Set weights, moments and the step count; the inverse of `read_state`."""
    set_step_count(engine.optimizer, step)
    parameters = dict(engine.model.named_parameters())
    for name, values in tensors:
        parameter = parameters.pop(name)
        values = {kind: value.to(engine.device) for kind, value in values.items()}
        if engine.config.parallel.zero_stage == 0:
            parameter.copy_(values[WEIGHT])
            for moment in MOMENTS:
                engine.optimizer.state[parameter][moment].copy_(values[moment])
            continue
        if engine.config.parallel.zero_stage < 3:
            parameter.copy_(values[WEIGHT])
        safe_set_full_fp32_param(parameter, values[WEIGHT])
        for moment in MOMENTS:
            safe_set_full_optimizer_state(parameter, values[moment], moment)
    assert not parameters, f"parameters without a saved tensor: {sorted(parameters)}"
    engine.step = step
