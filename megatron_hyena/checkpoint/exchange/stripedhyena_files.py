"""stripedhyena's files: a folder as on the Hugging Face hub, or a flat NAME.pt with NAME.yml.

In the folder `backbone.` stands before every name, the head of a tied model is left out, and the
settings are `config.yml` (a hub's `config.json` is read too). The .pt is what `load_state_dict`
takes: no prefix, and the head of a tied model again.
"""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_hyena.checkpoint.exchange import stripedhyena
from megatron_hyena.checkpoint.exchange.blocks import table
from megatron_hyena.checkpoint.exchange.evo_settings import read_rope
from megatron_hyena.checkpoint.exchange.lossy import LOSSY, Losses
from megatron_hyena.checkpoint.exchange.peer import (
    flat_tensors,
    notes_on,
    read_by,
    told_by,
    written_by,
)
from megatron_hyena.checkpoint.exchange.settings import Settings, read_settings, settings_text
from megatron_hyena.checkpoint.exchange.tensors import Tensors, from_safetensors
from megatron_hyena.checkpoint.exchange.vortex_files import settings_beside
from megatron_hyena.checkpoint.exchange.weights import Weights, expected
from megatron_hyena.checkpoint.exchange.writing import write_torch
from megatron_hyena.checkpoint.huggingface.shards import write_shards
from megatron_hyena.data.atomic import atomic_files, atomic_folder

UNEMBED, PREFIX, SETTINGS = "unembed.weight", "backbone.", "config.yml"


def settings_inside(folder: Path) -> Path:
    """The settings of a folder: config.yml, else the hub's config.json."""
    own = folder / SETTINGS
    return own if own.is_file() else folder / "config.json"


def read(path: Path, losses: Losses, settings_file: Path | None = None) -> Weights:
    """A folder or .pt file of stripedhyena.

    Raises:
        UserError: file or settings are missing or damaged, or no model of ours is that.
    """
    if path.is_dir():
        settings = read_settings(settings_file or settings_inside(path))
        theirs = from_safetensors(path).renamed(lambda name: name.removeprefix(PREFIX))
    else:
        settings = read_settings(settings_file or settings_beside(path))
        theirs = flat_tensors(path, losses)
    config = stripedhyena.read_config(settings, theirs)
    config = told_by(theirs, config, read_rope(settings, stripedhyena.ROPE_BASE), losses)
    copied = config.tie_embeddings and UNEMBED in theirs.kinds
    stored = stripedhyena.filters(settings, config.hidden_size)
    layout = stripedhyena.read_layout(settings, copied)
    entries = table(config, layout, stripedhyena.modes(config, stored))
    return read_by(entries, theirs, config, stripedhyena.NAME, settings, path, losses)


def write(
    weights: Weights,
    path: Path,
    losses: Losses,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 5 * 10**9,
) -> list[str]:
    """Write `weights` as a folder, or as a .pt file and its YAML; returns notes for the user.

    Raises:
        UserError: a loss that was not allowed, or a pole that fp32 cannot tell from 1.
    """
    config = stripedhyena.fitted(weights.config, losses)
    losses.check()
    flat = path.suffix == ".pt"
    ours = weights.tensors.only(expected(config).kinds).cast(lambda _: torch.float32)
    origin = weights.origin_of(stripedhyena.NAME) if config == weights.config else None
    was = Settings(origin.settings, weights.where) if origin else None
    stored = stripedhyena.stored_filters(config, ours, was)
    values = stripedhyena.settings_of(config, stored)
    if was is not None:
        values = was.values | {"hyena_filter_groups": values["hyena_filter_groups"]}
    layout = stripedhyena.read_layout(
        Settings(values, weights.where), flat and config.tie_embeddings
    )
    entries = table(config, layout, stripedhyena.modes(config, stored))
    theirs, notes = written_by(entries, ours, origin, dtype, weights.where)
    if flat:
        _write_file(theirs, path, settings_text(values), losses)
    else:
        _write_folder(theirs, path, settings_text(values), losses, shard_bytes)
    return notes + notes_on(config, "Evo 1's program")


def _write_file(theirs: Tensors, path: Path, settings: str, losses: Losses) -> None:
    with atomic_files(path, path.with_suffix(".yml")) as (pt, yml):
        write_torch(pt, theirs)
        yml.write_text(settings, encoding="utf-8")
    losses.write(path.with_name(f"{path.stem}.{LOSSY}"))


def _write_folder(
    theirs: Tensors, path: Path, settings: str, losses: Losses, shard_bytes: int
) -> None:
    with atomic_folder(path, marker=SETTINGS, overwrite=True) as building:
        named = theirs.renamed(lambda name: PREFIX + name)
        write_shards(building, named, named.shadows(), shard_bytes)
        (building / SETTINGS).write_text(settings, encoding="utf-8")
        losses.write(building / LOSSY)
