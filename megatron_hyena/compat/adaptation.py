"""A trained model with filters of another reach: the configuration changes, the weights stay.

Implicit filters are functions of position, so shorter ones are the beginning of longer ones and
every weight fits; banks of explicit taps are cut, or go on with zeros. What would need other
weights is refused.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.layers.filters import GenomicHyenaFilter
from megatron_hyena.model.hyena_glt import HyenaGLT

WIDEST, NARROWEST = 256, 32
TASKS = ("classification", "generation", "variant_calling")
PROBE_BYTES = 32
ROUNDING = 1e-9
"""Change of earlier states, relative to the largest, that is no leak."""


def fine_tune_hyena_for_task(
    model: HyenaGLT, task_type: str = "classification", recompute: str = "none", **fields: Any
) -> HyenaGLT:
    """A new model for a task with all weights of `model`, which stays as it is.

    `classification` doubles explicit filters, up to 256 taps (longer ones stay); `variant_calling`
    halves them, down to 32; `generation` needs a causal model and changes nothing: a model trained
    with sight of what follows cannot be made causal by a switch.

    Args:
        model: dense.
        task_type: one of the three.
        recompute: see `HyenaGLT`.
        fields: of the configuration, to change too.
    Raises:
        UserError: an unknown task; a change that other weights would be needed for; a change from
            causal to bidirectional or back.
    """
    if task_type not in TASKS:
        raise UserError(f"task_type={task_type!r} is unknown; use {', '.join(TASKS)}")
    causal = is_causal(model)
    if task_type == "generation" and not causal:
        raise UserError(
            "generation needs a model trained causally, and outputs of this one change with what "
            "follows; pretrain a causal one"
        )
    changes = {"hyena_filter_size": _taps(model, task_type)} | fields
    adapted = HyenaGLT(replace(model.config, **changes), recompute=recompute)
    weights = _weights(model, adapted)
    first = next(model.parameters())
    adapted = adapted.to(first.device)
    if first.dtype != torch.float32:
        adapted = adapted.to(first.dtype)
    adapted.load_state_dict(weights)
    if is_causal(adapted) != causal:
        now = "causal" if causal else "bidirectional"
        raise UserError(f"{', '.join(fields)} would make a {now} model something else; retrain it")
    return adapted.train(model.training)


@torch.no_grad()
def is_causal(model: HyenaGLT) -> bool:
    """Whether the last of some random bytes changes no earlier state (beyond rounding).

    Tried on a copy in double precision, where a leak and the rounding of an FFT lie far apart.
    """
    tried = copy.deepcopy(model).double().eval()
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    length = -(-PROBE_BYTES // model.merging_multiple) * model.merging_multiple
    ids = torch.randint(vocabulary, (1, length), generator=generator)
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % vocabulary
    device = next(model.parameters()).device
    earlier = slice(length - 1)
    states, changed = (tried(x.to(device)).last_hidden_state[:, earlier] for x in (ids, other))
    return bool((states - changed).abs().max() <= ROUNDING * states.abs().max())


def _taps(model: HyenaGLT, task_type: str) -> int:
    """`hyena_filter_size` for the task; 0 stays the whole sequence where filters may only grow."""
    config = model.config
    taps, reach = config.explicit_taps, config.hyena_taps
    if task_type == "classification" and taps:
        wide = max(taps, min(WIDEST, 2 * taps))
        bounded = config.hyena_filter == "implicit"
        return min(config.max_sequence_length, wide) if bounded else wide
    if task_type == "variant_calling":
        return min(reach, max(NARROWEST, reach // 2))
    return config.hyena_filter_size


def _weights(model: HyenaGLT, adapted: HyenaGLT) -> dict[str, Tensor]:
    """All that `adapted` holds, from `model`."""
    weights = dict(model.state_dict())
    for name, module in adapted.named_modules():
        bank = f"{name}.filters"
        if isinstance(module, GenomicHyenaFilter) and bank in weights:
            more = module.filter_size - weights[bank].shape[-1]
            weights[bank] = F.pad(weights[bank], (0, more))  # a negative pad cuts
    wanted = adapted.state_dict()
    for name in sorted(weights.keys() | wanted.keys()):
        shapes = [list(d[name].shape) if name in d else None for d in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{name} has shape {shapes[0]} and would have {shapes[1]}: this change needs other "
                "weights; pretrain a model of the new configuration"
            )
    return weights
