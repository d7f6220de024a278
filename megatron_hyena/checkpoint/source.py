"""A trained model by whatever names it, with what its run says of the bytes it was shown."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_hyena.checkpoint.dense import load_dense
from megatron_hyena.checkpoint.format import read_manifest
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """The dense model and its run.

    Attributes:
        model: in eval mode; its user may cast it or move it, for it is a copy.
        name: where it comes from.
        sequence_length: the run's `data.sequence_length`; None where that is not known.
        tracks: those that the run gave it beside the bytes.
        upper_case: whether it was shown upper case alone.
        digest: SHA-256 of its architecture and weights.
    """

    model: HyenaGLT
    name: str
    sequence_length: int | None
    tracks: tuple[str, ...]
    upper_case: bool
    digest: str


def trained_model(source: str | Path | HyenaGLT) -> TrainedModel:
    """Of a run folder, a checkpoint, a folder of `save_pretrained`, or a model itself.

    Raises:
        UserError: as `load_dense` and `HyenaGLT.from_pretrained`.
    """
    if isinstance(source, HyenaGLT):
        model = copy.deepcopy(source).eval()
        return TrainedModel(model, "a model in memory", None, (), False, weights_digest(model))
    if (Path(source) / "model.safetensors").is_file():
        model = HyenaGLT.from_pretrained(source).eval()
        return TrainedModel(model, str(source), None, (), False, weights_digest(model))
    model, folder = load_dense(source)
    data = read_manifest(folder).run.get("data", {})
    return TrainedModel(
        model,
        str(folder),
        data.get("sequence_length"),
        tuple(data.get("tracks") or ()),
        bool(data.get("upper_case", False)),
        weights_digest(model),
    )


def weights_digest(model: HyenaGLT) -> str:
    """SHA-256 over the configuration and every stored tensor."""
    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(model.stored().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tracks(trained: TrainedModel, without: bool, given: Collection[str] = ()) -> None:
    """Refuse a model whose run gave it tracks that are not `given`.

    Args:
        without: go on as where they are unknown (`--without-tracks`).
    Raises:
        UserError: the track; also where chunks are read from it, which nothing can replace.
    """
    config = trained.model.config
    precomputed = "(" in config.pattern and config.merger == "precomputed"
    if precomputed and "boundaries" not in given:
        raise UserError(
            f"{trained.name}: model.merger=precomputed reads its chunks from the track "
            "`boundaries`, which this input has not; use a model of another merger"
        )
    beside = [name for name in trained.tracks if name != "type" and name not in given]
    if beside and not without:
        raise UserError(
            f"{trained.name} was trained with the track {beside[0]!r}, which this input has not; "
            "pass --without-tracks to go on as where it is unknown"
        )
