"""The settings file of a peer's model: YAML or JSON, keys checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_hyena.errors import UserError

REQUIRED = object()


class Settings:
    """Values by key; every complaint names the file, the key and the fix."""

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values, self.where = dict(values), where

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of `key`; without a default it must be there."""
        found = self.values.get(key)
        if found is None:
            if default is REQUIRED:
                raise UserError(
                    f"{self.where}: the key {key} is missing, and tensors do not tell it; add it"
                )
            return default
        return found

    def whole(self, key: str, default: Any = REQUIRED) -> int:
        """The value of `key`, a whole number."""
        found = self.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int):
            raise UserError(f"{self.where}: {key}={found!r} must be a whole number; correct it")
        return found

    def number(self, key: str, default: Any = REQUIRED) -> float:
        """The value of `key`, a number (`1e-6` is text to YAML, and is read as a number here)."""
        found = self.get(key, default)
        try:
            return float(found)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.where}: {key}={found!r} must be a number; correct it"
            ) from error

    def layers(self, key: str) -> list[int]:
        """The value of `key`, a list of block numbers."""
        found = self.get(key)
        if not isinstance(found, list) or not all(isinstance(n, int) for n in found):
            raise UserError(f"{self.where}: {key}={found!r} must be a list of block numbers")
        return found

    def insist(self, wanted: Mapping[str, Any], program: str) -> None:
        """Refuse values for which there is no model of ours; a missing key is as wanted."""
        for key, value in wanted.items():
            if (found := self.get(key, value)) != value:
                raise UserError(
                    f"{self.where}: {key}={found!r} is a {program} model that this program has no "
                    f"form for; only {key}={value!r} can be read"
                )

    def pattern(self, signs: Mapping[str, str]) -> str:
        """One sign per block, from the lists of block numbers under the keys of `signs`.

        Raises:
            UserError: a block in no list, in two, or beyond `num_layers`.
        """
        count = self.whole("num_layers")
        found: dict[int, str] = {}
        for key, sign in signs.items():
            for block in self.layers(key):
                if not 0 <= block < count or block in found:
                    problem = "two lists have it" if block in found else f"num_layers is {count}"
                    raise UserError(f"{self.where}: {key} has block {block}, but {problem}")
                found[block] = sign
        for block in range(count):
            if block not in found:
                raise UserError(
                    f"{self.where}: block {block} of {count} is in none of {', '.join(signs)}"
                )
        return "".join(found[block] for block in range(count))


def read_settings(path: Path) -> Settings:
    """Settings of a YAML or JSON file.

    Raises:
        UserError: missing, or not a mapping of keys.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not found; tensors do not tell layers, eps or RoPE: put the model's settings "
            "beside it, or name them by --settings"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]}); correct it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; give the settings of the model")
    return Settings(values, path)


def settings_text(values: Mapping[str, Any]) -> str:
    """YAML that every reader of it takes for the same numbers (1.0e-06, not 1e-06)."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None)
    return text


def inner_size(settings: Settings) -> int:
    """Inner width of the MLP: as given, or 8/3 of the width as these programs round it."""
    if settings.get("inner_mlp_size", None) is not None:
        return settings.whole("inner_mlp_size")
    multiple = settings.whole("inner_size_multiple_of", 64) * settings.whole(
        "model_parallel_size", 1
    )
    return -(-int(2 * settings.whole("hidden_size") * 4 / 3) // multiple) * multiple
