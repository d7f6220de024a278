"""The engine's state as whole tensors: weights and Adam moments by parameter name.

ZeRO spreads them over replicas in flat partitions; here they are gathered and set one parameter
at a time through DeepSpeed's fragment interface, so what is saved does not depend on the ZeRO stage
or on the number of replicas. All functions are collective over the replicas.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from megatron_hyena.checkpoint.tensors import MOMENTS, WEIGHT
from megatron_hyena.engine.engine import Engine
from megatron_hyena.engine.moments import set_step_count
from megatron_hyena.layers.parameter import cut_of


def trained(engine: Engine) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer moves, by name; others never change."""
    return {name: p for name, p in engine.model.named_parameters() if p.requires_grad}


def read_state(engine: Engine) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name, {weight, exp_avg, exp_avg_sq}) of this tensor rank, in fp32."""
    for name, parameter in trained(engine).items():
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
    stage = engine.config.parallel.zero_stage
    set_step_count(engine.optimizer, stage, step)
    parameters = trained(engine)
    for name, values in tensors:
        parameter = parameters.pop(name)
        values = {kind: value.to(engine.device) for kind, value in values.items()}
        if stage == 3:
            _set_partition(engine, parameter, values)
            continue
        parameter.copy_(values[WEIGHT])
        if stage > 0:
            safe_set_full_fp32_param(parameter, values[WEIGHT])
        for moment in MOMENTS:
            if stage > 0:
                safe_set_full_optimizer_state(parameter, values[moment], moment)
            else:
                engine.optimizer.state[parameter][moment].copy_(values[moment])
    assert not parameters, f"parameters without a saved tensor: {sorted(parameters)}"
    engine.step = step


def whole_weights(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter, trained or not, whole on every rank; detached copies."""
    stage = engine.config.parallel.zero_stage
    for name, parameter in engine.model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            own = parameter.detach().clone()
        cut, size = cut_of(parameter), engine.mesh.tensor_size
        if cut.dim is not None and size > 1:
            parts = [torch.empty_like(own) for _ in range(size)]
            dist.all_gather(parts, own.contiguous(), group=engine.mesh.tensor)
            own = cut.join(parts)
        yield name, own


@torch.no_grad()
def set_weights(engine: Engine, whole: Iterable[tuple[str, Tensor]]) -> None:
    """Compute with other weights from now on; the optimizer keeps its own, so train no further."""
    parameters = dict(engine.model.named_parameters())
    for name, tensor in whole:
        parameter, mesh = parameters[name], engine.mesh
        part = cut_of(parameter).take(tensor, mesh.tensor_rank, mesh.tensor_size)
        part = part.to(engine.device)
        if engine.config.parallel.zero_stage == 3:
            parameter.ds_tensor.data.copy_(_share(engine, parameter, part))  # type: ignore[attr-defined]
        else:
            parameter.copy_(part)


def _share(engine: Engine, parameter: Tensor, whole: Tensor) -> Tensor:
    """Stage 3: this replica's flat share of a parameter, padded to that of the others."""
    share = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    first = engine.mesh.replica_rank * share
    padded = F.pad(whole.flatten(), (0, engine.mesh.replica_size * share - whole.numel()))
    return padded[first : first + share]


def _set_partition(engine: Engine, parameter: Tensor, values: dict[str, Tensor]) -> None:
    """Stage 3: this replica's share of one parameter.

    DeepSpeed's setter of whole tensors fails where the ranks do not divide the size; the shares
    are padded to equal lengths. The share that it gathers for computing is not always the storage
    of the one that its optimizer updates, so both are set.
    """

    def part(kind: str) -> Tensor:
        return _share(engine, parameter, values[kind])

    parameter.ds_tensor.data.copy_(part(WEIGHT))  # type: ignore[attr-defined]
    safe_set_local_fp32_param(parameter, part(WEIGHT))
    for moment in MOMENTS:
        safe_set_local_optimizer_state(parameter, part(moment), moment)
