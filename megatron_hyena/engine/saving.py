"""Save and resume a run: collective, atomic, and agreed upon by all ranks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from megatron_hyena.checkpoint.format import (
    PROVENANCE,
    Manifest,
    read_manifest,
    remove_old,
    step_folder,
    tensor_file,
    write_manifest,
)
from megatron_hyena.checkpoint.start import find_start
from megatron_hyena.checkpoint.tensors import (
    BUFFER,
    MOMENTS,
    WEIGHT,
    read_buffers,
    read_parameters,
    write_tensors,
)
from megatron_hyena.config import config_dict, length_schedule
from megatron_hyena.engine.engine import Engine
from megatron_hyena.engine.state import read_state, trained, write_state
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.layers.parameter import cut_of


def save_checkpoint(engine: Engine, folder: Path, data: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the checkpoint of the engine's step under `folder`; all ranks call it.

    `data`: of each folder of training data its `folder`, `digest` and `provenance`.

    Raises:
        UserError: on every rank, if one rank could not write (a full disk, say). Earlier
            checkpoints are untouched.
    """
    mesh, main = engine.mesh, dist.get_rank() == 0
    final = folder / step_folder(engine.step)
    building = folder / f".{final.name}"
    tensors = {
        f"{kind}/{name}": tensor.detach().to("cpu", copy=True)
        for name, kinds in read_state(engine)
        if mesh.replica_rank == 0
        for kind, tensor in kinds.items()
    }
    tensors |= {f"{BUFFER}/{name}": buffer for name, buffer in rate_state(engine.model).items()}

    def begin() -> None:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        if data:
            text = json.dumps([dict(one) for one in data], indent=1)
            (building / PROVENANCE).write_text(text + "\n", encoding="utf-8")

    def write() -> None:
        write_tensors(building / tensor_file(mesh.tensor_rank, mesh.tensor_size), tensors)

    def complete() -> None:
        write_manifest(building, replace(_manifest(engine, building), data=_told(data)))
        if final.exists():  # aside at once, deleted below
            os.rename(final, building.with_name(f"{building.name}.replaced"))
        os.rename(building, final)
        remove_old(folder, engine.config.checkpoint.keep, engine.step)

    for mine, act in ((main, begin), (mesh.replica_rank == 0, write), (main, complete)):
        failure = ""
        try:
            if mine:
                act()
        except (OSError, SafetensorError) as error:
            failure = str(error)
        _agree(failure, building, engine)
    return final


def resume(engine: Engine) -> Path | None:
    """Load what `checkpoint.resume` means; returns the checkpoint, None for a new start.

    Raises:
        UserError: see `checkpoint.start.find_start`; or a file cannot be read.
    """
    start = find_start(engine.config)
    # File systems may show a new folder to one node before another: rank 0's view holds.
    chosen = [start.folder if start else None]
    dist.broadcast_object_list(chosen, src=0, device=engine.device)
    folder = chosen[0]
    if folder is None:
        return None
    manifest, mesh = read_manifest(folder), engine.mesh
    differing = sorted(manifest.parameters.keys() ^ trained(engine).keys())
    if differing:
        raise UserError(
            f"{folder}: {differing[0]!r} is trained by only one of the saved run and this one "
            f"({len(differing)} are); go on with the command that wrote it, or start anew with "
            "checkpoint.resume=none"
        )
    tensors = read_parameters(
        folder, manifest, (WEIGHT, *MOMENTS), mesh.tensor_rank, mesh.tensor_size
    )
    write_state(engine, tensors, manifest.step)
    buffers = rate_state(engine.model)
    for name, saved in read_buffers(folder, manifest).items():
        buffers[name].copy_(saved)
    return folder


def _manifest(engine: Engine, building: Path) -> Manifest:
    cuts = {name: cut_of(p) for name, p in trained(engine).items()}
    values = config_dict(engine.config)
    return Manifest(
        step=engine.step,
        sequences=engine.step * engine.config.train.global_batch_size,
        model=values["model"],
        run=values,
        tensor_size=engine.mesh.tensor_size,
        parameters={
            name: {"shape": list(cut.shape), "dim": cut.dim, "blocks": cut.blocks}
            for name, cut in cuts.items()
        },
        buffers=list(rate_state(engine.model)),
        files={p.name: p.stat().st_size for p in sorted(building.glob("tensor_*"))},
        lengths=[list(stage) for stage in length_schedule(engine.config).stages],
    )


def _told(data: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [{"folder": one["folder"], "digest": one["digest"]} for one in data]


def _agree(failure: str, building: Path, engine: Engine) -> None:
    """Raise on all ranks if one failed, after removing what was begun."""
    failures = [""] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    if not any(failures):
        return
    if dist.get_rank() == 0:
        shutil.rmtree(building, ignore_errors=True)
    raise UserError(
        f"{building.parent}: could not save step {engine.step} ({next(filter(None, failures))}); "
        "free some space and start the same command again; earlier checkpoints are intact"
    )
