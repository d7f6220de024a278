"""The fields of an exported model's `config.json`; needs no `transformers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from megatron_hyena.config.model import HyenaGLTConfig

HEAD_DEFAULTS: dict[str, Any] = {
    "classifier_dropout": 0.1,
    "classifier_pooling": "mean",
    "regression_loss": "mse",
    "regression_delta": 1.0,
    "target_mean": 0.0,
    "target_std": 1.0,
}
"""Fields of the heads for classes and numbers; see `megatron_hyena.model.heads`."""
RENAMED = {"rope_scaling": "rotary_scaling"}
"""Fields of the architecture whose names mean something else to `transformers`."""


def exported_fields(config: HyenaGLTConfig) -> dict[str, Any]:
    """The architecture as `config.json` of an exported model has it."""
    return {RENAMED.get(name, name): value for name, value in asdict(config).items()}


def exported_architecture(values: Mapping[str, Any]) -> HyenaGLTConfig:
    """The inverse of `exported_fields`; other values are passed by, absent ones are defaults."""
    names = {f.name: RENAMED.get(f.name, f.name) for f in fields(HyenaGLTConfig)}
    given = {name: values[key] for name, key in names.items() if key in values}
    return HyenaGLTConfig(**given)
