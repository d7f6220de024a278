"""A model on its way between formats: configuration, and tensors when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_hyena.checkpoint.exchange.lossy import some_of
from megatron_hyena.checkpoint.exchange.origin import Origin
from megatron_hyena.checkpoint.exchange.tensors import Kind, Tensors
from megatron_hyena.checkpoint.huggingface.model_card import Described
from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.model.count import meta_model


@dataclass(frozen=True)
class Weights:
    """A model in our form, wherever it lies.

    Attributes:
        config: its architecture.
        tensors: parameters and buffers by our names, whole.
        where: the file or folder, for messages.
        origin: what it was made from, if it was not trained here.
        about: what its run says of it, for a model card.
    """

    config: HyenaGLTConfig
    tensors: Tensors
    where: Path
    origin: Origin | None = None
    about: Described | None = None

    def check(self) -> Weights:
        """Itself; raises `UserError` where its tensors are not those of its configuration."""
        wanted = expected(self.config)
        if differing := sorted(wanted.kinds.keys() ^ self.tensors.kinds.keys()):
            raise UserError(
                f"{self.where}: tensors that only the file or only the model of its configuration "
                f"has: {some_of(differing)}; give the files of one model and this version of it"
            )
        for name, kind in wanted.kinds.items():
            found = self.tensors.kinds[name].shape
            if found != kind.shape:
                raise UserError(
                    f"{self.where}: {name} has shape {list(found)}, the model of its configuration "
                    f"{list(kind.shape)}; give the files of one model"
                )
        return self

    def origin_of(self, format_name: str) -> Origin | None:
        """The origin, if it is of this format and the architecture is still its own."""
        found = self.origin
        return found if found is not None and found.fits(format_name, self.config) else None


def expected(config: HyenaGLTConfig) -> Tensors:
    """Names and shapes of a model's tensors; there is nothing to load."""
    stored = meta_model(config).stored()

    def nothing(name: str) -> torch.Tensor:
        raise AssertionError(f"{name} is not there")

    return Tensors({n: Kind(tuple(t.shape), t.dtype) for n, t in stored.items()}, nothing)
