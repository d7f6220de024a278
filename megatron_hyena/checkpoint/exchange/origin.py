"""What a native folder keeps of the checkpoint it was made from, so that the way back is exact.

Our form folds some numbers: exp(log_rate) for a stored pole, one base for all RoPE frequencies.
`origin.safetensors` beside the model holds the stored tensors of these, `origin.json` the settings
and dtypes. On the way back they are taken wherever they still fold to what the model holds, bit by
bit; where training has moved a weight, its tensors are derived anew, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_hyena.checkpoint.exchange.lossy import some_of
from megatron_hyena.checkpoint.exchange.mapping import Entry, Table
from megatron_hyena.checkpoint.exchange.tensors import Kind, Tensors, from_safetensors
from megatron_hyena.checkpoint.exchange.writing import write_safetensors
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError

SETTINGS, TENSORS = "origin.json", "origin.safetensors"


@dataclass(frozen=True)
class Origin:
    """A checkpoint of another program that a model was made from.

    Attributes:
        format: its name.
        settings: of that program.
        model: our configuration of it, as read.
        dtypes: of all its tensors, by name.
        tensors: those that our form does not keep bit by bit.
    """

    format: str
    settings: dict[str, Any]
    model: dict[str, Any]
    dtypes: dict[str, str]
    tensors: Tensors = field(compare=False)

    def fits(self, format_name: str, config: HyenaGLTConfig) -> bool:
        """Whether it is of this format and of a model of the same architecture."""
        return self.format == format_name and self.model == _plain(config)


def make_origin(
    name: str, settings: Mapping[str, Any], config: HyenaGLTConfig, table: Table, theirs: Tensors
) -> Origin:
    """The origin of a model that was read by `table`."""
    folded = {n for entry in table if not entry.form.exact for n in entry.theirs}
    dtypes = {n: str(kind.dtype).removeprefix("torch.") for n, kind in theirs.kinds.items()}
    return Origin(name, dict(settings), _plain(config), dtypes, theirs.only(folded))


def write_origin(folder: Path, origin: Origin) -> None:
    """Write both files into a folder under construction."""
    write_safetensors(folder / TENSORS, origin.tensors)
    values = {
        "format": origin.format,
        "settings": origin.settings,
        "model": origin.model,
        "dtypes": origin.dtypes,
    }
    (folder / SETTINGS).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """The origin kept in a native folder; None where there is none.

    Raises:
        UserError: one of the two files is missing or damaged.
    """
    path = folder / SETTINGS
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Origin(**values, tensors=from_safetensors(folder / TENSORS))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); convert the checkpoint again, or remove it and {TENSORS}"
        ) from error


def with_stored(
    theirs: Tensors, table: Table, ours: Tensors, origin: Origin, dtypes: bool
) -> tuple[Tensors, list[str]]:
    """`theirs` (fp32) with the stored tensors and, if asked, `dtypes` wherever they still hold.

    Reads the model once more. Returns also what was derived anew, in words, for the user.
    """
    stored: set[str] = set()
    derived: list[str] = []
    for entry in table:
        if not entry.form.exact and all(name in origin.tensors for name in entry.theirs):
            if _still_folds(entry, ours, origin):
                stored |= set(entry.theirs)
            else:
                derived += entry.theirs
    kinds, wider = {}, []
    for name, kind in theirs.kinds.items():
        if name in stored:
            kinds[name] = origin.tensors.kinds[name]
            continue
        dtype = getattr(torch, origin.dtypes.get(name, "float32")) if dtypes else kind.dtype
        if dtype != kind.dtype:
            tensor = theirs[name]
            if not torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
                wider.append(name)
                dtype = kind.dtype
        kinds[name] = Kind(kind.shape, dtype)

    def load(name: str) -> torch.Tensor:
        return origin.tensors[name] if name in stored else theirs[name].to(kinds[name].dtype)

    notes = [f"derived anew, since the weights have changed: {some_of(derived)}"] * bool(derived)
    if wider:
        notes.append(
            f"in fp32, since the weights are no longer of the stored dtype: {some_of(wider)}"
        )
    return Tensors(kinds, load), notes


def _still_folds(entry: Entry, ours: Tensors, origin: Origin) -> bool:
    folded = entry.form.back(*(origin.tensors[name].float() for name in entry.theirs))
    return all(
        torch.equal(tensor.float(), ours[name])
        for name, tensor in zip(entry.ours, folded, strict=True)
    )


def _plain(config: HyenaGLTConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain
