"""savanna's tensors out of DeepSpeed's folders of ZeRO 1 and 3, of any tensor-parallel size.

    global_step100/mp_rank_00_model_states.pt                         ZeRO 1: whole tensors, bf16
    global_step100/zero_pp_rank_0_mp_rank_00_model_states.pt          ZeRO 3: shapes, and buffers
    global_step100/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt     the parameters in fp32, flat

`mp` counts tensor ranks and `pp` data ranks. Of ZeRO 1 the flat fp32 parameters are taken if they
are there, of every group one vector that is cut evenly over the data ranks; of ZeRO 3 each
parameter is cut over them by itself. Nothing but what is asked for is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.inert import load_inert
from megatron_hyena.checkpoint.exchange.lossy import Losses, some_of
from megatron_hyena.checkpoint.exchange.tensors import Kind, MappedFile, Tensors
from megatron_hyena.errors import UserError

WHOLE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
PART = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
WHOLE_NAME = "mp_rank_{:02d}_model_states.pt"
PART_NAME = "zero_pp_rank_0_mp_rank_{:02d}_model_states.pt"
SCALES = "_extra_state"
"""End of the names of Transformer Engine's FP8 scales."""
ROWS = (
    "word_embeddings.weight",
    "final_linear.weight",
    "dense_projection.weight",
    "short_conv_weight",
    "conv_bias",
    "filter.h",
    "filter.decay",
    "filter.gamma",
    "filter.R",
    "filter.p",
    "w1.weight",
    "w2.weight",
)
"""Ends of names of tensors that are cut over tensor ranks by rows."""
COLUMNS = ("mixer.dense.weight", "w3.weight")
"""The same by columns; all others are whole on each rank."""


def axis_of(name: str) -> int | None:
    """The dimension along which a tensor is cut over tensor ranks."""
    return 0 if name.endswith(ROWS) else 1 if name.endswith(COLUMNS) else None


@dataclass(frozen=True)
class Shards:
    """A checkpoint's tensors, whole, and how they were kept.

    Attributes:
        folder: with the files.
        tensors: by savanna's names; fp32 where the optimizer's are there.
        stage: of ZeRO.
        ranks: tensor-parallel ranks.
    """

    folder: Path
    tensors: Tensors
    stage: int
    ranks: int


def tag_folder(path: Path) -> Path:
    """The folder with the files: `path`, or what `latest` in it names.

    Raises:
        UserError: that folder is not there.
    """
    latest = path / "latest"
    if not latest.is_file():
        return path
    found = path / latest.read_text(encoding="utf-8").strip()
    if not found.is_dir():
        raise UserError(f"{latest}: names {found.name}, which is not there; give the whole folder")
    return found


def is_savanna(path: Path) -> bool:
    """Whether `path` is a folder of DeepSpeed's model states, or names one."""
    if not path.is_dir():
        return False
    latest = path / "latest"
    folder = path / latest.read_text(encoding="utf-8").strip() if latest.is_file() else path
    return bool(_numbered(folder, WHOLE) or _numbered(folder, PART))


def read_shards(path: Path, losses: Losses) -> Shards:
    """Find the files of all ranks below `path`.

    Raises:
        UserError: a rank's file is missing or damaged, or the files are not of one model.
    """
    folder = tag_folder(path)
    whole, parts = _numbered(folder, WHOLE), _numbered(folder, PART)
    optimizer = _numbered(folder, OPTIMIZER)
    if not whole and not parts:
        raise UserError(f"{folder}: no file like mp_rank_00_model_states.pt in it")
    if whole:
        count = _tensor_ranks(folder, set(whole), next(iter(whole.values())), WHOLE_NAME)
        ranks = [_of_zero_1(whole[(rank,)], _data_ranks(optimizer, rank)) for rank in range(count)]
        _name_others(whole[(0,)], ranks[0], losses)
    else:
        found: set[tuple[int, ...]] = {(rank,) for _, rank in parts}
        count = _tensor_ranks(folder, found, next(iter(parts.values())), PART_NAME)
        ranks = [_of_zero_3(folder, parts, optimizer, rank) for rank in range(count)]
        _name_others(parts[(0, 0)], ranks[0], losses)
    return Shards(folder, _joined(ranks, folder, losses), 1 if whole else 3, count)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[tuple[int, ...], Path]:
    if not folder.is_dir():
        return {}
    found = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return {tuple(map(int, m.groups())): path for m, path in found if m}


def _tensor_ranks(folder: Path, found: set[tuple[int, ...]], any_file: Path, name: str) -> int:
    """How many tensor ranks there are, as their files say; all of them are there (UserError)."""
    return _all_there(folder, found, name, int(_state(any_file).get("mp_world_size") or 1))


def _name_others(path: Path, taken: Tensors, losses: Losses) -> None:
    """Whatever a module keeps that is no tensor of the model is a loss, but for FP8 scales."""
    names = sorted(_state(path)["module"])
    if scales := [name for name in names if name.endswith(SCALES)]:
        losses.tell(f"left out: the scales of FP8 passes ({len(scales)}), which no weight needs")
    if others := [n for n in names if n not in taken.kinds and not n.endswith(SCALES)]:
        losses.add("unused", f"{len(others)} states of {path} ({some_of(others)})")


def _all_there(folder: Path, found: set[tuple[int, ...]], name: str, least: int = 0) -> int:
    """How many ranks there are, at least `least`; raises `UserError` for the first missing."""
    count = max(least, 1 + max((rank for (rank,) in found), default=-1))
    for rank in range(count):
        if (rank,) not in found:
            raise UserError(
                f"{folder / name.format(rank)}: not there, though the checkpoint is of {count} "
                "ranks; give the files of all ranks"
            )
    return count


def _data_ranks(files: Mapping[tuple[int, ...], Path], rank: int) -> dict[int, Path]:
    return {data: path for (data, tensor), path in files.items() if tensor == rank}


def _of_zero_1(path: Path, optimizer: dict[int, Path]) -> Tensors:
    state = _state(path)
    module = _module(path)
    if not optimizer or not state.get("param_shapes"):
        return module
    name = f"zero_pp_rank_{{}}_{path.name.replace('_model_', '_optim_')}"
    size = int(state.get("dp_world_size") or 0)
    count = _all_there(path.parent, {(data,) for data in optimizer}, name, size)
    flats = [_flat(optimizer[data], "single_partition_of_fp32_groups") for data in range(count)]
    loads: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, Kind] = {}
    for group, named in enumerate(state["param_shapes"]):
        parts = [flat.only({str(group)}) for flat in flats]
        held = sum(part.kinds[str(group)].shape[0] for part in parts)
        start = 0
        for key, shape in named.items():
            kind = Kind(tuple(shape))
            loads[key] = _cut_from(parts, str(group), start, kind)
            shapes[key] = kind
            start += kind.bytes // 4
        if start > held:
            raise UserError(
                f"{optimizer[0]}: group {group} of all ranks holds {held} numbers, and "
                f"{path.name} names {start}; give the files of one checkpoint"
            )
    kinds = {key: shapes.get(key, kind) for key, kind in module.kinds.items()}
    return Tensors(kinds, lambda key: loads[key]() if key in loads else module[key])


def _cut_from(parts: Sequence[Tensors], group: str, start: int, kind: Kind) -> Callable[[], Tensor]:
    """Numbers `start` and on of a vector that the data ranks hold one after another."""

    def load() -> Tensor:
        wanted, at, pieces = kind.bytes // 4, 0, []
        for part in parts:
            size = part.kinds[group].shape[0]
            first, last = max(start - at, 0), min(start + wanted - at, size)
            if first < last:
                pieces.append(part[group][first:last].float())
            at += size
        return torch.cat(pieces).view(kind.shape)

    return load


def _of_zero_3(
    folder: Path,
    files: Mapping[tuple[int, ...], Path],
    optimizer: Mapping[tuple[int, ...], Path],
    rank: int,
) -> Tensors:
    own, flats = _data_ranks(files, rank), _data_ranks(optimizer, rank)
    tail = f"mp_rank_{rank:02d}"
    name = f"zero_pp_rank_{{}}_{tail}_model_states.pt"
    known = next(iter(own.values()), None)
    size = int(_state(known).get("dp_world_size") or 0) if known else 1
    count = _all_there(folder, {(data,) for data in own}, name, size)
    _all_there(
        folder, {(data,) for data in flats}, f"bf16_zero_pp_rank_{{}}_{tail}_optim_states.pt", count
    )
    state = _state(own[0])
    buffers = _module(own[0])
    parts = [_flat(flats[data], "fp32_flat_groups") for data in range(count)]
    loads: dict[str, Callable[[], Tensor]] = {}
    kinds: dict[str, Kind] = {}
    start = 0
    for named in state["param_shapes"]:
        for key, shape in named.items():
            kinds[key] = Kind(tuple(shape))
            each = -(-kinds[key].bytes // 4 // count)
            loads[key] = _gathered(parts, start, each, kinds[key])
            start += each
    for data, part in enumerate(parts):
        held = sum(kind.shape[0] for kind in part.kinds.values())
        if held < start:
            raise UserError(
                f"{flats[data]}: holds {held} numbers, and {own[0].name} names {start}; give the "
                "files of one checkpoint"
            )
    kinds |= {key: kind for key, kind in buffers.kinds.items() if key not in kinds}
    return Tensors(kinds, lambda key: loads[key]() if key in loads else buffers[key])


def _gathered(parts: Sequence[Tensors], start: int, each: int, kind: Kind) -> Callable[[], Tensor]:
    """`each` numbers of every data rank, from `start` on, less the padding at the end."""

    def load() -> Tensor:
        pieces = [_stretch(part, start, each) for part in parts]
        return torch.cat(pieces)[: kind.bytes // 4].view(kind.shape)

    return load


def _stretch(part: Tensors, start: int, count: int) -> Tensor:
    """Numbers of one rank's flat groups, one after another."""
    at, pieces = 0, []
    for group, kind in part.kinds.items():
        size = kind.shape[0]
        first, last = max(start - at, 0), min(start + count - at, size)
        if first < last:
            pieces.append(part[group][first:last].float())
        at += size
    return torch.cat(pieces) if pieces else torch.zeros(0)


def _state(path: Path) -> dict[str, Any]:
    """The plain values of a model-states file.

    Raises:
        UserError: damaged, or of a program that keeps its states otherwise.
    """
    found = load_inert(path)
    if not isinstance(found, dict) or not isinstance(found.get("module"), dict):
        raise UserError(f"{path}: holds no module states; give a folder that DeepSpeed wrote")
    if found.get("frozen_param_fragments"):
        names = some_of(found["frozen_param_fragments"])
        raise UserError(f"{path}: has frozen parameters ({names}), which this program cannot join")
    return found


def _flat(path: Path, key: str) -> Tensors:
    """Flat groups of one optimizer-states file, by number.

    Raises:
        UserError: none there, or with padding that this program does not know.
    """

    def find(found: Any) -> dict[str, Tensor]:
        state = found.get("optimizer_state_dict") if isinstance(found, dict) else None
        groups = state.get(key) if isinstance(state, dict) else None
        if not groups:
            raise UserError(f"{path}: has no {key}, in which the parameters are kept in fp32")
        assert isinstance(state, dict)
        if any(any(one) for one in state.get("param_alignment_paddings") or []):
            raise UserError(f"{path}: pads every parameter, which this program cannot take apart")
        return {str(number): group.reshape(-1) for number, group in enumerate(groups)}

    return MappedFile(path, find, load_inert).tensors()


def _module(path: Path) -> Tensors:
    """Tensors of a file of model states, without FP8 scales."""

    def find(found: Any) -> dict[str, Any]:
        return {n: t for n, t in found["module"].items() if not n.endswith(SCALES)}

    return MappedFile(path, find, load_inert).tensors()


def _joined(ranks: Sequence[Tensors], folder: Path, losses: Losses) -> Tensors:
    """The tensors of all tensor ranks, put together."""
    for number, rank in enumerate(ranks[1:], start=1):
        if differing := sorted(ranks[0].kinds.keys() ^ rank.kinds.keys()):
            raise UserError(
                f"{folder}: tensors that only one of tensor ranks 0 and {number} has: "
                f"{some_of(differing)}; give the files of one checkpoint"
            )
    kinds, apart = {}, []
    for name, kind in ranks[0].kinds.items():
        axis = axis_of(name)
        shape = list(kind.shape)
        if axis is not None:
            shape[axis] = sum(rank.kinds[name].shape[axis] for rank in ranks)
        elif any(not torch.equal(rank[name], ranks[0][name]) for rank in ranks[1:]):
            apart.append(name)
        kinds[name] = Kind(tuple(shape), kind.dtype)
    if apart:
        losses.add(
            "replicas", f"tensors of which tensor ranks hold other copies ({some_of(apart)})"
        )

    def load(name: str) -> Tensor:
        axis = axis_of(name)
        if axis is None or len(ranks) == 1:
            return ranks[0][name]
        return torch.cat([rank[name] for rank in ranks], dim=axis)

    return Tensors(kinds, load)
