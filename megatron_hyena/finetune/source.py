"""Where the weights of a fine-tuning run come from; found without reading any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.checkpoint.format import MANIFEST, read_manifest, resolve_checkpoint
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.saved import CONFIG, read_config
from megatron_hyena.errors import UserError

BEST = "best"
"""Folder of a fine-tuning run that holds its model."""


@dataclass(frozen=True)
class Source:
    """A folder that holds a trained model: a checkpoint, or one of `save_pretrained`."""

    folder: Path
    checkpoint: bool
    config: HyenaGLTConfig


def find_source(path: str) -> Source:
    """The model that `finetune.from` means; of a fine-tuning run, its best.

    Raises:
        UserError: nothing there that holds a model, or it is damaged.
    """
    folder = Path(path)
    if (folder / BEST / CONFIG).is_file():
        folder = folder / BEST
    if (folder / CONFIG).is_file():
        return Source(folder, False, read_config(folder))
    try:
        found = resolve_checkpoint(folder)
    except UserError as error:
        raise UserError(
            f"finetune.from={path}: neither a run folder or checkpoint ({MANIFEST}) nor a folder "
            f"of save_pretrained ({CONFIG}); train a model first, or name another folder"
        ) from error
    return Source(found, True, HyenaGLTConfig(**read_manifest(found).model))
