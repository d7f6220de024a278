"""All formats by name: how to tell one by its contents, how to read and how to write it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from megatron_hyena.checkpoint.exchange import (
    savanna_files,
    stripedhyena_files,
    vortex_files,
)
from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.checkpoint.exchange.native import read_native, write_native
from megatron_hyena.checkpoint.exchange.origin import SETTINGS, Origin, read_origin
from megatron_hyena.checkpoint.exchange.savanna_files import Ranks
from megatron_hyena.checkpoint.exchange.savanna_shards import is_savanna
from megatron_hyena.checkpoint.exchange.tensors import from_checkpoint, from_safetensors, from_torch
from megatron_hyena.checkpoint.exchange.weights import Weights
from megatron_hyena.checkpoint.format import (
    MANIFEST,
    find_checkpoints,
    read_manifest,
    resolve_checkpoint,
)
from megatron_hyena.checkpoint.huggingface.export import LARGEST_FILE, export_huggingface
from megatron_hyena.checkpoint.huggingface.exported_fields import exported_architecture
from megatron_hyena.checkpoint.huggingface.heads import HEADS, read_head
from megatron_hyena.checkpoint.huggingface.model_card import described_by
from megatron_hyena.checkpoint.huggingface.shards import size_in_bytes
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """What a conversion may be told.

    Attributes:
        from_format: instead of telling by the contents.
        settings: the peer's settings file, where it does not lie beside the tensors.
        allow_lossy: names of `lossy.NAMES`.
        dtype: of the output, a key of `DTYPES`; None keeps the one it came in.
        origin: a native folder whose origin is that of this model too: it was trained from it.
        max_shard_size: most bytes of a file of a folder, such as 5GB.
        ranks: of a folder of savanna.
        head: of a fine-tuned model, the one to export for transformers; "" for its only one,
            `none` for the language model alone.
    """

    from_format: str | None = None
    settings: Path | None = None
    allow_lossy: tuple[str, ...] = ()
    dtype: str | None = None
    max_shard_size: str = LARGEST_FILE
    ranks: Ranks = field(default_factory=Ranks)
    head: str = ""
    origin: Path | None = None


@dataclass(frozen=True)
class Converted:
    """What was done: where the model came from, its form there, and what the user should know."""

    source: Path
    from_format: str
    notes: list[str] = field(default_factory=list)


Read = Callable[[Path, Losses, Options], Weights]
Write = Callable[[Weights, Path, Losses, Options], list[str]]


@dataclass(frozen=True)
class Format:
    """One format; `write` is None for what is only read."""

    recognises: Callable[[Path], bool]
    read: Read
    write: Write | None


def convert(source: Path, to: str, output: Path, options: Options) -> Converted:
    """Convert the model at `source` to the format `to` at `output`.

    Raises:
        UserError: anything missing, damaged, not to be told, or lost without leave.
    """
    losses = Losses(to, options.allow_lossy)
    name = options.from_format or recognise(source)
    weights = FORMATS[name].read(source, losses, options)
    if to != "hf" and options.head != "none" and (weights.where / HEADS).is_file():
        losses.add("heads", f"the heads of {weights.where / HEADS}, which --head none leaves out")
    if options.origin is not None:
        weights = dataclasses.replace(weights, origin=_origin(options.origin))
    write = FORMATS[to].write
    assert write is not None, to
    notes = write(weights, output, losses, options)
    losses.check()
    return Converted(weights.where, name, [*notes, *losses.lines()])


def _origin(folder: Path) -> Origin:
    found = read_origin(folder)
    if found is None:
        raise UserError(
            f"--origin {folder}: no {SETTINGS} in it; name a folder that --to native made from "
            "another program's model"
        )
    return found


def recognise(path: Path) -> str:
    """The format of what lies at `path`, told by its contents.

    Raises:
        UserError: none of the known ones.
    """
    if not path.exists():
        raise UserError(f"{path}: not found; give a run folder, a checkpoint or a model's file")
    for name, known in FORMATS.items():
        if known.recognises(path):
            return name
    raise UserError(
        f"{path}: no complete checkpoint there, and no model of {', '.join(FORMATS)}; "
        "name the right folder or file, or its format by --from-format"
    )


def _is_run(path: Path) -> bool:
    places = (path, path / "checkpoints")
    return (path / MANIFEST).is_file() or any(find_checkpoints(place) for place in places)


def _read_run(path: Path, losses: Losses, options: Options) -> Weights:
    folder = resolve_checkpoint(path)
    manifest = read_manifest(folder)
    tensors = from_checkpoint(folder, manifest)
    config = HyenaGLTConfig(**manifest.model)
    about = described_by(folder, manifest.step)
    return Weights(config, tensors, folder, about=about).check()


def _config_keys(path: Path) -> dict[str, object]:
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or none of ours: another format, or an error later
        return {}
    return found if isinstance(found, dict) else {}


def _is_hf(path: Path) -> bool:
    return _config_keys(path).get("model_type") == "hyena_glt"


def _is_native(path: Path) -> bool:
    keys = _config_keys(path)
    return "pattern" in keys and "model_type" not in keys


def _read_hf(path: Path, losses: Losses, options: Options) -> Weights:
    config = exported_architecture(_config_keys(path))
    tensors = from_safetensors(path)
    inside = {n for n in tensors if n.startswith("model.")}
    if heads := sorted(set(tensors) - inside):
        losses.add("unused", f"{len(heads)} tensors of a head of {path} ({', '.join(heads)})")
    ours = tensors.only(inside).renamed(lambda name: name.removeprefix("model."))
    return Weights(config, ours, path).check()


def _write_hf(weights: Weights, path: Path, losses: Losses, options: Options) -> list[str]:
    losses.check()
    head = read_head(weights.where, options.head)
    export_huggingface(
        weights.config,
        weights.tensors,
        path,
        head=head,
        about=weights.about,
        max_shard_size=options.max_shard_size,
    )
    return []


def _write_native(weights: Weights, path: Path, losses: Losses, options: Options) -> list[str]:
    losses.check()
    return write_native(weights, path, losses, _dtype(options))


def _dtype(options: Options) -> torch.dtype | None:
    return DTYPES[options.dtype] if options.dtype else None


def _is_vortex(path: Path) -> bool:
    return _has(path, (".filter.h", ".filter.log_poles"))


def _is_stripedhyena(path: Path) -> bool:
    return _has(path, (".filter.poles",))


def _has(path: Path, ends: tuple[str, ...]) -> bool:
    """Whether a .pt file, or a folder of safetensors, has tensors whose names end so."""
    if path.is_dir():
        single, index = path / "model.safetensors", path / "model.safetensors.index.json"
        if not (single.is_file() or index.is_file()):
            return False
        return any(name.endswith(ends) for name in from_safetensors(path))
    if path.suffix != ".pt":
        return False
    try:
        return any(name.endswith(ends) for name in from_torch(path))
    except (TypeError, ValueError, AttributeError):  # not a flat dict
        return False


FORMATS: dict[str, Format] = {
    "run": Format(_is_run, _read_run, None),
    "hf": Format(_is_hf, _read_hf, _write_hf),
    "native": Format(_is_native, lambda path, _, __: read_native(path), _write_native),
    "vortex": Format(
        _is_vortex,
        lambda path, losses, options: vortex_files.read(path, losses, options.settings),
        lambda weights, path, losses, options: vortex_files.write(
            weights, path, losses, _dtype(options)
        ),
    ),
    "stripedhyena": Format(
        _is_stripedhyena,
        lambda path, losses, options: stripedhyena_files.read(path, losses, options.settings),
        lambda weights, path, losses, options: stripedhyena_files.write(
            weights, path, losses, _dtype(options), size_in_bytes(options.max_shard_size)
        ),
    ),
    "savanna": Format(
        is_savanna,
        lambda path, losses, options: savanna_files.read(path, losses, options.settings),
        lambda weights, path, losses, options: savanna_files.write(
            weights, path, losses, _dtype(options), options.ranks
        ),
    ),
}
"""In the order in which contents are tried."""
