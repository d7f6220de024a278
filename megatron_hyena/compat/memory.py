"""The guide's estimate of memory, kept for comparison; `model.count` has the one to plan with."""

from __future__ import annotations

from typing import Any

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.pattern import Stage, parse_layout
from megatron_hyena.errors import UserError

GIB = 1024**3
EMBEDDING_BYTES, LAYER_BYTES = 4, 8
"""Per element: a vector in fp32; the same and its gradient."""


def estimate_memory_usage(
    config: Any, batch_size: int, sequence_length: int, merge_ratio: float | None = None
) -> dict[str, float]:
    """The guide's formula: one tensor and its gradient per layer, and the embedded input.

    It leaves out parameters, optimizer state, MLPs, projections, attention, logits and the bytes
    outside merged stages. `megatron_hyena.model.count.cost` counts them, and
    `pretrain.train --dry-run` prints what it finds.

    Args:
        config: `HyenaGLTConfig`, or any object with `d_model` and `n_layers`.
        batch_size: sequences.
        sequence_length: bytes of each.
        merge_ratio: here the fraction *kept*, 1 for no merging. None takes, of a `HyenaGLTConfig`
            (whose field is the fraction removed), the mean over its blocks, those outside merged
            stages keeping all; and of another object its attribute `merge_ratio`, if any.
    Returns:
        `standard_memory_gb`, `merged_memory_gb` (GiB), and `memory_reduction`, a fraction.
    Raises:
        UserError: the object has no sizes; a size below 1; a fraction outside [0, 1].
    """
    width, layers = _sizes(config)
    kept = _kept(config) if merge_ratio is None else merge_ratio
    if min(width, layers, batch_size, sequence_length) < 1:
        raise UserError(
            f"d_model={width}, n_layers={layers}, batch_size={batch_size} and "
            f"sequence_length={sequence_length} must be 1 or more"
        )
    if not 0 <= kept <= 1:
        raise UserError(
            f"merge_ratio={kept}: the fraction of positions kept must lie between 0 and 1"
        )
    embedding = batch_size * sequence_length * width * EMBEDDING_BYTES
    per_position = batch_size * width * LAYER_BYTES * layers
    total = embedding + per_position * sequence_length
    merged = embedding + per_position * int(sequence_length * kept)
    return {
        "standard_memory_gb": total / GIB,
        "merged_memory_gb": merged / GIB,
        "memory_reduction": (total - merged) / total,
    }


def _sizes(config: Any) -> tuple[int, int]:
    if isinstance(config, HyenaGLTConfig):
        return config.hidden_size, len(config.signs)
    try:
        return config.d_model, config.n_layers
    except AttributeError as error:
        raise UserError(
            f"{type(config).__name__} has no d_model or no n_layers; give a HyenaGLTConfig"
        ) from error


def _kept(config: Any) -> float:
    if isinstance(config, HyenaGLTConfig):
        kept = _kept_by_block(parse_layout(config.pattern).items, 1.0, config.merge_ratio)
        return sum(kept) / len(kept)
    return float(getattr(config, "merge_ratio", 1.0))


def _kept_by_block(items: tuple[int | Stage, ...], outside: float, removed: float) -> list[float]:
    """The fraction of the bytes that each block sees, in stages of stages too."""
    found: list[float] = []
    for item in items:
        if isinstance(item, Stage):
            own = removed if item.merge_ratio is None else item.merge_ratio
            found += _kept_by_block(item.items, outside * (1 - own), removed)
        else:
            found.append(outside)
    return found
