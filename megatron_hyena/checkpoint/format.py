"""What lies on disk: a folder per step, complete once its manifest is there.

    checkpoints/step_00000100/checkpoint.json                the manifest
    checkpoints/step_00000100/tensor_00_of_02.safetensors    weights and moments of one tensor rank
    checkpoints/step_00000100/provenance.json                the training data: sources, options

A checkpoint is written under a hidden name and renamed when it is whole, so a crash or a full disk
leaves the earlier ones as they were. The manifest says how each parameter is cut, so any number of
tensor ranks can read it; nothing in it depends on data-parallel ranks or on the ZeRO stage.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_hyena.config import HyenaGLTConfig, plain_values
from megatron_hyena.errors import UserError

MANIFEST = "checkpoint.json"
PROVENANCE = "provenance.json"
FORMAT = 1
_STEP = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Manifest:
    """Contents of `checkpoint.json`.

    Attributes:
        step: optimizer steps done.
        sequences: training sequences consumed; the next one is at this position of the stream.
        model: the architecture's fields.
        run: the whole configuration of the run that saved it.
        tensor_size: tensor-parallel ranks, one file each.
        parameters: name -> {"shape", "dim", "blocks"} of the full tensor and its cut.
        files: name -> bytes.
        buffers: names of what training moves beside the parameters: the state of merging's rates.
        lengths: [first step from 0, bases in a sequence] of each stage of the length curriculum;
            empty: all of `data.sequence_length`.
        data: folder and content's digest of each folder of shards that the run trains on; empty:
            untold. What they were made of is in `provenance.json`.
    """

    step: int
    sequences: int
    model: dict[str, Any]
    run: dict[str, Any]
    tensor_size: int
    parameters: dict[str, dict[str, Any]]
    files: dict[str, int]
    buffers: list[str] = field(default_factory=list)
    format: int = FORMAT
    lengths: list[list[int]] = field(default_factory=list)
    data: list[dict[str, str]] = field(default_factory=list)


def step_folder(step: int) -> str:
    """Name of the checkpoint of `step`."""
    return f"step_{step:08d}"


def tensor_file(rank: int, size: int) -> str:
    """Name of one tensor rank's file."""
    return f"tensor_{rank:02d}_of_{size:02d}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a complete checkpoint.

    Raises:
        UserError: not a checkpoint, another format, or a file that is missing or cut short.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no {MANIFEST} in it, so it is not a complete checkpoint")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**values)
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of this program: {error}") from error
    if manifest.format != FORMAT:
        raise UserError(f"{path}: format {manifest.format}; this version reads format {FORMAT}")
    for name, size in manifest.files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            raise UserError(
                f"{folder / name}: {'missing' if found is None else f'{found} bytes'}, "
                f"{size} bytes expected; restore the file or use another checkpoint"
            )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write and flush the manifest into a checkpoint folder under construction."""
    path = folder / MANIFEST
    with path.open("w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(manifest), file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def find_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints under `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if _STEP.fullmatch(p.name) and (p / MANIFEST).is_file()]
    return sorted(found)


def remove_old(folder: Path, keep: int, step: int) -> None:
    """Tidy up behind the checkpoint of `step`, just saved.

    Deleted are what crashes left behind, checkpoints of later steps (of an abandoned run: this
    one was started anew, or from an earlier checkpoint) and all but the newest `keep` (0 keeps
    all).
    """
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = find_checkpoints(folder)
    later = [path for path in found if path.name > step_folder(step)]
    earlier = found[: len(found) - len(later)]
    for path in later + (earlier[:-keep] if keep else []):
        shutil.rmtree(path)


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint meant by a run folder, a `checkpoints` folder or a checkpoint itself."""
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    for folder in (path / "checkpoints", path):
        found = find_checkpoints(folder)
        if found:
            return found[-1]
    raise UserError(
        f"{path}: no complete checkpoint there; give a run folder or a step_... folder "
        f"with a {MANIFEST}"
    )


def check_causal(saved: dict[str, Any], where: Path, purpose: str) -> None:
    """Raise `UserError` if a checkpoint's model is not causal, which `purpose` needs."""
    if not saved.get("causal", True):
        raise UserError(
            f"{where}: {purpose} needs a causal model, and this one was trained with "
            "model.causal=false; name a run of train.objective=clm"
        )


def check_architecture(saved: dict[str, Any], wanted: HyenaGLTConfig, where: Path) -> None:
    """Raise `UserError` listing the fields in which a checkpoint's architecture differs."""
    asked = plain_values(wanted)
    # A field that the saving version did not have yet has the value it had then: the default.
    saved = plain_values(HyenaGLTConfig()) | saved
    differing = [
        f"{key}: {saved.get(key)!r} saved, {asked.get(key)!r} asked"
        for key in sorted({*saved, *asked})
        if saved.get(key) != asked.get(key)
    ]
    if differing:
        raise UserError(
            f"{where}: checkpoint of another architecture (model.{'; model.'.join(differing)}); "
            "change these keys, or set checkpoint.resume=none and another run.output_dir"
        )
