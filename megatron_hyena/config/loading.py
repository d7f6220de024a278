"""A run's configuration: defaults <- YAML files <- dotted overrides, and back to YAML.

How files include each other and what is refused: megatron_hyena/yaml_sections.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_hyena.config.sections import Config
from megatron_hyena.yaml_sections import keys_of, load_sections, merge_sections, plain_values


def load_config(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """Read a run's configuration.

    Args:
        path: YAML file; None for the defaults alone.
        overrides: `section.key=value`, or `section.part.key=value`; the text is read as the
            key's type, a list as `[a, b]`.
    Raises:
        UserError: missing file, bad YAML, unknown, doubled or ill-typed key, broken rule.
    """
    return load_sections(Config, path, overrides, "configs/run/")


def config_of(values: dict[str, Any], source: str) -> Config:
    """The configuration that `config_dict` made `values` of; keys that lack have their default.

    Raises:
        UserError: an unknown or ill-typed key, or a broken rule; `source` names the file.
    """
    return merge_sections(Config, [(source, values)])


def save_config(config: Config, path: Path) -> None:
    """Write `config` as YAML that `load_config` reads back to an equal one."""
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def config_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Plain nested dictionary of all values."""
    return plain_values(config)


def valid_keys() -> list[str]:
    """Every `section.key`, and `section.part.key` where a section has parts."""
    return keys_of(Config)
