"""`--dry-run`: the resolved configuration and what the run would cost; trains nothing."""

from __future__ import annotations

from omegaconf import OmegaConf

from megatron_hyena.config import (
    Config,
    HyenaGLTConfig,
    check_layout,
    exchange_of,
    length_schedule,
)
from megatron_hyena.config.merging import stage_shapes, stage_shares
from megatron_hyena.config.pattern import SIGNS, Stage, parse_layout
from megatron_hyena.model.count import cost, flops_per_token
from megatron_hyena.model.traffic import busiest


def describe(config: Config, world_size: int) -> str:
    """The text that `--dry-run` prints.

    Without a launcher, the smallest number of ranks that the layout allows is assumed.
    """
    parallel = config.parallel
    ranks = max(world_size, parallel.tensor * parallel.context)
    check_layout(config, ranks)
    data_size = ranks // (parallel.tensor * parallel.context)
    costs = cost(config, data_size * parallel.context)
    tokens = config.train.global_batch_size * config.data.sequence_length
    flops = tokens * sum(
        flops_per_token(config.model, length) * steps
        for length, steps in length_schedule(config).spans(config.train.steps)
    )
    at_full_length = " of the full length" if config.curriculum.initial_length else ""
    rows = {
        "ranks": f"{ranks} = tensor {parallel.tensor} x context {parallel.context} x data "
        f"{data_size}, sequence parallel {'on' if parallel.sequence else 'off'}",
        "ZeRO stage": f"{parallel.zero_stage}, recompute {parallel.recompute}",
        "blocks": _blocks(parse_layout(config.model.pattern).items, config.model.signs),
        **_stages(config.model),
        "parameters": f"{costs.parameters:,} ({costs.parameters_per_rank:,} per tensor rank)",
        "tokens": f"{tokens:,} per step, {tokens * config.train.steps:,} in all",
        **_curriculum(config),
        "FLOPs": f"{costs.flops_per_token:.3g} per token{at_full_length}, {flops:.3g} in all",
        "memory per rank": f"{costs.state_gb:.3f} GiB weights, gradients, moments + "
        f"{costs.activations_gb:.3f} GiB activations (estimate)",
    }
    lines = [f"{name:<16} {value}" for name, value in rows.items()]
    lines += _traffic(config)
    return OmegaConf.to_yaml(OmegaConf.structured(config)) + "\n" + "\n".join(lines)


def _blocks(items: tuple[int | Stage, ...], signs: tuple[str, ...]) -> str:
    """The signs of all blocks, merged stages in brackets."""
    return " ".join(
        f"({_blocks(item.items, signs)})" if isinstance(item, Stage) else signs[item]
        for item in items
    )


def _stages(model: HyenaGLTConfig) -> dict[str, str]:
    """A row for each merged stage."""
    shares = stage_shares(model)
    return {
        f"merged stage {number}": f"window {shape.window}, slots {shape.slots}, merge_ratio "
        f"{shape.merge_ratio:g}, {float(shape.window / (share * shape.slots)):.3g} bytes per slot"
        for number, (shape, share) in enumerate(zip(stage_shapes(model), shares, strict=True))
    }


def _curriculum(config: Config) -> dict[str, str]:
    """The lengths of the curriculum, if there is one, and how sequences are cut for the first."""
    first, train = config.curriculum.initial_length, config.train
    if not first:
        return {}
    pieces = config.data.sequence_length // first
    return {
        "lengths": str(length_schedule(config)),
        "sequences": f"{train.global_batch_size * pieces:,} in a step and "
        f"{train.micro_batch_size * pieces:,} in a micro-batch at first, "
        f"{train.global_batch_size:,} and {train.micro_batch_size:,} at last",
    }


def _traffic(config: Config) -> list[str]:
    """What the busiest rank sends inside the model, by kind of layer; nothing for one rank."""
    sent = busiest(config)
    if not sent:
        return []
    full = " of the full length" if config.curriculum.initial_length else ""
    lines = [
        f"bytes sent by the busiest rank for a micro-batch{full} (without gradients and ZeRO):",
        f"  {'layers, exchange':<27} {'forward':>14} {'backward':>14}",
    ]
    for kind, one in sent.items():
        name = kind
        if kind in SIGNS:
            name = f"{config.model.signs.count(kind)} x {kind}, {exchange_of(config, kind)}"
        lines.append(f"  {name:<27} {one.forward:>14,} {one.backward:>14,}")
    return lines
