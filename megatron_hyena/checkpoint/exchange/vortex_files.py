"""vortex's files: NAME.pt, a flat dict of tensors, and NAME.yml beside it."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_hyena.checkpoint.exchange import vortex
from megatron_hyena.checkpoint.exchange.blocks import Layout, table
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
from megatron_hyena.checkpoint.exchange.weights import Weights, expected
from megatron_hyena.checkpoint.exchange.writing import write_torch
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.data.atomic import atomic_files
from megatron_hyena.errors import UserError

UNEMBED = "unembed.weight"


def settings_beside(path: Path) -> Path:
    """The YAML of a .pt file: NAME.yml, or NAME.yaml if that is there."""
    yaml = path.with_suffix(".yaml")
    return yaml if yaml.is_file() else path.with_suffix(".yml")


def read(path: Path, losses: Losses, settings_file: Path | None = None) -> Weights:
    """A .pt file of vortex.

    Raises:
        UserError: file or settings are missing or damaged, or no model of ours is that.
    """
    settings = read_settings(settings_file or settings_beside(path))
    theirs = flat_tensors(path, losses, "._extra_state")
    config = vortex.read_config(settings, losses)
    config = told_by(theirs, config, read_rope(settings, vortex.ROPE_BASE), losses)
    copied = config.tie_embeddings and UNEMBED in theirs.kinds
    layout = vortex.read_layout(settings, copied)
    entries = table(config, layout, vortex.modes)
    return read_by(entries, theirs, config, vortex.NAME, settings, path, losses)


def write(
    weights: Weights, path: Path, losses: Losses, dtype: torch.dtype | None = None
) -> list[str]:
    """Write `weights` as `path` (.pt) and its YAML; returns notes for the user.

    Raises:
        UserError: another suffix, or a loss that was not allowed.
    """
    if path.suffix != ".pt":
        raise UserError(f"--output {path}: vortex reads one file; give a name that ends in .pt")
    config = vortex.fitted(weights.config, losses)
    losses.check()
    ours = weights.tensors.only(expected(config).kinds).cast(lambda _: torch.float32)
    origin = weights.origin_of(vortex.NAME) if config == weights.config else None
    was = Settings(origin.settings, weights.where) if origin else None
    kept = origin is not None and config.tie_embeddings and UNEMBED in origin.dtypes
    layout = vortex.layout_of(config, ours, was, kept)
    entries = table(config, layout, vortex.modes)
    theirs, notes = written_by(entries, ours, origin, dtype, weights.where)
    values = _settings(config, layout, was, path.stem)
    yaml, lost = path.with_suffix(".yml"), path.with_name(f"{path.stem}.{LOSSY}")
    with atomic_files(path, yaml) as (pt, yml):
        write_torch(pt, theirs)
        yml.write_text(settings_text(values), encoding="utf-8")
    losses.write(lost)
    return notes + notes_on(config, "Evo 2's program")


def _settings(
    config: HyenaGLTConfig, layout: Layout, was: Settings | None, name: str
) -> dict[str, object]:
    own = vortex.settings_of(config, layout)
    if was is None:
        return {"model_name": name} | own | vortex.REST
    # The architecture is still that of these settings; RoPE's belong to the stored frequencies.
    moved = ("hcs_filter_groups", "hcm_filter_groups", "short_filter_bias", "qkv_proj_bias")
    return was.values | {key: own[key] for key in (*moved, "hyena_out_proj_bias")}
