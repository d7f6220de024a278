"""The architecture that a format can say, nearest to a model's; every difference is a loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS, parse_layout
from megatron_hyena.errors import UserError


@dataclasses.dataclass(frozen=True)
class Abilities:
    """What a format of the Hyena family has.

    Attributes:
        signs: kinds of layers.
        activations: values of `model.mlp_activation`.
        biases: on projections and featurizers.
        complex_poles, se_skip, untied: whether it has them.
    """

    signs: str
    activations: tuple[str, ...]
    biases: bool = True
    complex_poles: bool = True
    se_skip: bool = True
    untied: bool = True


def fit(config: HyenaGLTConfig, can: Abilities, losses: Losses) -> HyenaGLTConfig:
    """The nearest architecture that a format with the abilities `can` holds.

    All these formats have eps outside the root of RMSNorm and no merging or types.

    Raises:
        UserError: a layer that nothing could stand for, or a model that is not causal.
    """
    pattern = _pattern(config, can, losses)
    _insist(config, pattern, can, losses)
    fitted: dict[str, Any] = {"pattern": pattern}

    def lose(name: str, field: str, value: Any, what: str) -> None:
        if getattr(config, field) != value:
            losses.add(name, what)
            fitted[field] = value

    lose(
        "norm_eps",
        "norm_eps_outside",
        True,
        "eps under the root of RMSNorm (train with model.norm_eps_outside=true)",
    )
    lose(
        "type_embedding",
        "type_embedding",
        "none",
        f"model.type_embedding={config.type_embedding} (train with none)",
    )
    if config.mlp_activation not in can.activations:
        lose(
            "activation",
            "mlp_activation",
            "gelu",
            f"model.mlp_activation={config.mlp_activation} (train with "
            f"{' or '.join(can.activations)})",
        )
    if not can.biases:
        lose("biases", "projection_bias", False, "model.projection_bias=true (train with false)")
    if "L" in pattern and not can.complex_poles:
        lose("complex_poles", "li_poles", "real", "model.li_poles=complex (train with real)")
    if "S" in pattern and not can.se_skip:
        lose("se_skip", "se_skip", False, "model.se_skip=true (train with false)")
    if not can.untied:
        lose(
            "tie_embeddings",
            "tie_embeddings",
            True,
            "model.tie_embeddings=false (train with true)",
        )
    return dataclasses.replace(config, **fitted)


def _pattern(config: HyenaGLTConfig, can: Abilities, losses: Losses) -> str:
    """Signs without stages; `W` becomes `A`."""
    signs = "".join(config.signs)
    if stages := parse_layout(config.pattern).stages:
        losses.add(
            "merging",
            f"{len(stages)} merged stage{'s' * (len(stages) > 1)} (model.pattern="
            f"{config.pattern!r}; train without brackets)",
        )
    if "W" in signs and "A" in can.signs and "W" not in can.signs:
        losses.add("window", f"model.attention_window={config.attention_window} (train A, not W)")
        signs = signs.replace("W", "A")
    return signs


def _insist(config: HyenaGLTConfig, pattern: str, can: Abilities, losses: Losses) -> None:
    for sign in sorted(set(pattern) - set(can.signs)):
        raise UserError(
            f"{losses.target} has no layer like {sign} ({SIGNS[sign].name}) of model.pattern="
            f"{config.pattern!r}; only {', '.join(can.signs)} can be written: use --to hf or native"
        )
    if not config.causal:
        raise UserError(
            f"{losses.target} has no model that sees both sides (model.causal=false); use "
            "--to native"
        )
