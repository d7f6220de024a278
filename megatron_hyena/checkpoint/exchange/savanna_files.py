"""savanna's folders: DeepSpeed's files of a step, and the YAML that the run was made with.

    OUTPUT/latest                                                     names the step's folder
    OUTPUT/global_step0/mp_rank_00_model_states.pt                    ZeRO 1, one per tensor rank
    OUTPUT/global_step0/zero_pp_rank_0_mp_rank_00_model_states.pt     ZeRO 3, one per rank, and
    OUTPUT/global_step0/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt
    OUTPUT/global_step0/configs/model.yml

Optimizer moments are not written: savanna goes on from such a folder with `finetune: true`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange import savanna
from megatron_hyena.checkpoint.exchange.lossy import LOSSY, Losses
from megatron_hyena.checkpoint.exchange.peer import (
    notes_on,
    read_by,
    told_by,
    written_by,
)
from megatron_hyena.checkpoint.exchange.rows import is_shared
from megatron_hyena.checkpoint.exchange.savanna_shards import (
    Shards,
    axis_of,
    read_shards,
    tag_folder,
)
from megatron_hyena.checkpoint.exchange.savanna_table import Layout, plain_layout, table
from megatron_hyena.checkpoint.exchange.settings import Settings, read_settings, settings_text
from megatron_hyena.checkpoint.exchange.tensors import Kind, Tensors
from megatron_hyena.checkpoint.exchange.weights import Weights, expected
from megatron_hyena.checkpoint.exchange.writing import write_torch
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.data.atomic import atomic_folder
from megatron_hyena.errors import UserError

TAG, SETTINGS, FOLDER = "global_step0", "configs/model.yml", "_folder"
BUFFERS = ("filter.decay", "filter.t", "inv_freq")
"""Ends of names of what is no parameter in savanna."""
MOVED = (
    "model_parallel_size",
    "zero_optimization",
    "num_groups_hyena",
    "num_groups_hyena_short",
    "num_groups_hyena_medium",
)
"""Keys of a checkpoint's own settings that another layout changes."""


@dataclass(frozen=True)
class Ranks:
    """How a folder is written.

    Attributes:
        tensor: tensor-parallel ranks.
        data: data-parallel ranks, among which ZeRO 3 spreads the parameters.
        stage: of ZeRO, 1 or 3.
    """

    tensor: int = 1
    data: int = 1
    stage: int = 1


def read(path: Path, losses: Losses, settings_file: Path | None = None) -> Weights:
    """A folder of savanna, or of one of its steps.

    Raises:
        UserError: a file is missing or damaged, or no model of ours is that.
    """
    settings = _plain_keys(read_settings(settings_file or _settings_inside(path)))
    shards = read_shards(path, losses)
    config, layout = savanna.read_config(settings, shards.tensors, shards.ranks)
    said = savanna.read_rope(settings, config.pattern)
    config = told_by(shards.tensors, config, said, losses)
    kept = asdict(layout) | {"ranks": shards.ranks, "stage": shards.stage}
    settings = Settings(settings.values | {FOLDER: kept}, settings.where)
    entries = table(config, layout)
    _tell_coarse(shards, losses)
    return read_by(entries, shards.tensors, config, savanna.NAME, settings, path, losses)


def _tell_coarse(shards: Shards, losses: Losses) -> None:
    """Tell where parameters are not the optimizer's."""
    if coarse := [n for n, kind in shards.tensors.kinds.items() if kind.dtype == torch.bfloat16]:
        losses.tell(
            f"{len(coarse)} tensors are the modules' own, in bf16: the files with the optimizer's "
            "fp32 parameters are not there"
        )


def _settings_inside(path: Path) -> Path:
    """The YAML of a step's folder, or of the folder around it.

    Raises:
        UserError: none, or several in one folder.
    """
    folder = tag_folder(path)
    for place in (folder / "configs", folder, path):
        found = sorted(p for end in ("*.yml", "*.yaml") for p in place.glob(end))
        if len(found) > 1:
            models = [p for p in found if "operator" in p.read_text(encoding="utf-8")]
            found = models if len(models) == 1 else found
        if len(found) > 1:
            raise UserError(f"{place}: has {len(found)} YAML files; name the model's by --settings")
        if found:
            return found[0]
    return folder / SETTINGS


def _plain_keys(settings: Settings) -> Settings:
    """Keys with underscores, as savanna takes them."""
    return Settings({k.replace("-", "_"): v for k, v in settings.values.items()}, settings.where)


def write(
    weights: Weights,
    path: Path,
    losses: Losses,
    dtype: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> list[str]:
    """Write `weights` as the folder `path`; returns notes for the user.

    Raises:
        UserError: a loss that was not allowed, or sizes that the tensor ranks do not divide.
    """
    ranks = ranks or Ranks()
    config = savanna.fitted(weights.config, losses)
    losses.check()
    _check_ranks(config, ranks)
    ours = weights.tensors.only(expected(config).kinds).cast(lambda _: torch.float32)
    origin = weights.origin_of(savanna.NAME) if config == weights.config else None
    layout = plain_layout(config)
    if origin is not None:
        kept = {k: v for k, v in origin.settings[FOLDER].items() if k not in ("ranks", "stage")}
        layout = _still_fitting(Layout(**kept), config, ours, ranks)
    entries = table(config, layout)
    theirs, notes = written_by(entries, ours, origin, dtype, weights.where)
    values = savanna.settings_of(config, layout, ranks.tensor, ranks.stage)
    if origin is not None:
        own = {k: v for k, v in origin.settings.items() if k != FOLDER}
        values = own | {key: values[key] for key in MOVED}
    with atomic_folder(path, marker="latest", overwrite=True) as building:
        step = building / TAG
        (step / SETTINGS).parent.mkdir(parents=True)
        (step / SETTINGS).write_text(settings_text(values), encoding="utf-8")
        _write_states(step, theirs, ranks)
        (building / "latest").write_text(TAG, encoding="utf-8")
        losses.write(building / LOSSY)
    if config.se_skip:
        notes.append("conv_bias of S (model.se_skip) is BioNeMo's; savanna's own S has none")
    return notes + notes_on(config, "Evo 2's program")


def _check_ranks(config: HyenaGLTConfig, ranks: Ranks) -> None:
    sizes = {
        "model.vocab_size": config.vocab_size,
        "model.num_heads": config.num_heads,
        "the width of the MLP": config.ffn or plain_layout(config).idle_mlp,
        "the filter groups": config.groups,
    }
    for name, size in sizes.items():
        if size % ranks.tensor:
            raise UserError(
                f"--tensor-ranks {ranks.tensor} does not divide {name} ({size}); give a divisor"
            )
    if ranks.stage not in (1, 3):
        raise UserError(f"--zero-stage {ranks.stage}: savanna has folders of stages 1 and 3")


def _still_fitting(layout: Layout, config: HyenaGLTConfig, ours: Tensors, ranks: Ranks) -> Layout:
    """The origin's layout, with all filters stored where groups no longer share them."""
    found = asdict(layout) | {"split": ranks.tensor if layout.split else 0}
    for field, sign, names in (
        ("se_groups", "S", ("taps",)),
        ("mr_groups", "M", ("taps",)),
        ("li_groups", "L", ("log_rate", "residue")),
        ("se_bias", "S", ("skip",)),
    ):
        blocks = [n for n, own in enumerate(config.signs) if own == sign]
        if field == "se_bias" and not config.se_skip:
            continue
        whole = [ours[f"blocks.{n}.mixer.{name}"] for n in blocks for name in names]
        if not all(is_shared(one, found[field]) for one in whole):
            found[field] = len(whole[0])
    return Layout(**found)


def _write_states(folder: Path, theirs: Tensors, ranks: Ranks) -> None:
    for tensor in range(ranks.tensor):
        own = _of_rank(theirs, tensor, ranks.tensor)
        if ranks.stage == 1:
            path = folder / f"mp_rank_{tensor:02d}_model_states.pt"
            write_torch(path, own, lambda held, own=own: _states(held, own, ranks))  # type: ignore[misc]
            continue
        for data in range(ranks.data):
            _write_zero_3(folder, own, ranks, data, tensor)


def _of_rank(theirs: Tensors, rank: int, size: int) -> Tensors:
    """What one tensor rank holds."""

    def cut(name: str, tensor: Tensor) -> Tensor:
        axis = axis_of(name)
        return tensor if axis is None else tensor.chunk(size, dim=axis)[rank].contiguous()

    kinds = {n: Kind(tuple(cut(n, k.meta()).shape), k.dtype) for n, k in theirs.kinds.items()}
    return Tensors(kinds, lambda name: cut(name, theirs[name]))


def _states(module: Mapping[str, Tensor], own: Tensors, ranks: Ranks) -> dict[str, Any]:
    """What a file of model states holds beside the tensors."""
    shapes = {n: torch.Size(k.shape) for n, k in own.kinds.items() if not n.endswith(BUFFERS)}
    return {
        "module": dict(module),
        "buffer_names": [name for name in own if name.endswith(BUFFERS)],
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "optimizer": None,
        "lr_scheduler": None,
        "global_steps": 0,
        "global_samples": 0,
        "skipped_steps": 0,
        "iteration": 0,
        "dp_world_size": ranks.data if ranks.stage == 3 else 1,
        "mp_world_size": ranks.tensor,
        "ds_config": {},
        "ds_version": "0",
    }


def _write_zero_3(folder: Path, own: Tensors, ranks: Ranks, data: int, tensor: int) -> None:
    """Two files of one rank: buffers and shapes; its share of each parameter in fp32."""
    tail = f"zero_pp_rank_{data}_mp_rank_{tensor:02d}"
    parameters = [name for name in own if not name.endswith(BUFFERS)]
    empty = {name: Kind((0,), own.kinds[name].dtype) for name in parameters}
    kinds = {name: empty.get(name, kind) for name, kind in own.kinds.items()}
    module = Tensors(
        kinds, lambda n: torch.empty(0, dtype=kinds[n].dtype) if n in empty else own[n]
    )
    write_torch(folder / f"{tail}_model_states.pt", module, lambda held: _states(held, own, ranks))
    each = {n: -(-torch.Size(own.kinds[n].shape).numel() // ranks.data) for n in parameters}

    def share(name: str) -> Tensor:
        flat = own[name].float().reshape(-1)[data * each[name] :][: each[name]]
        return torch.nn.functional.pad(flat, (0, each[name] - len(flat)))

    shares = Tensors({name: Kind((each[name],)) for name in parameters}, share)

    def arrange(held: Mapping[str, Tensor]) -> dict[str, Any]:
        state = {
            "zero_stage": 3,
            "loss_scaler": None,
            "dynamic_loss_scale": False,
            "overflow": False,
            "partition_count": ranks.data,
            "fp32_flat_groups": list(held.values()),
        }
        return {"optimizer_state_dict": state, "ds_config": {}, "ds_version": "0"}

    write_torch(folder / f"bf16_{tail}_optim_states.pt", shares, arrange)
