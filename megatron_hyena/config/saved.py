"""The architecture beside a model's weights: `config.json` of a folder of `save_pretrained`."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError

CONFIG = "config.json"


def read_config(folder: Path) -> HyenaGLTConfig:
    """The architecture in `config.json`.

    Raises:
        UserError: missing, damaged, or with other keys.
    """
    path = existing(folder / CONFIG)
    try:
        return HyenaGLTConfig(**json.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a model configuration ({error}); give a folder of save_pretrained"
        ) from error


def existing(path: Path) -> Path:
    """`path`, if it is a file; else raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: not found; give a folder of save_pretrained")
    return path
