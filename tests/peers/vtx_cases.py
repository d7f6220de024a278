"""Inside the peer's process: build a vortex model, load a file, read with it and write with it."""

from __future__ import annotations

from typing import Any

import torch

from tests.peers.process import Arrays
from tests.peers.random_weights import file_of
from tests.peers.stripedhyena_cases import read_and_decode, stored


def main(settings: dict[str, Any], inputs: Arrays) -> Arrays:
    """Logits of `ids` [B, L] at once and, after the first `prompt` of them, one by one, in fp32.

    The weights are those of a file, which are not everywhere those in memory (`Wqkv`):
    `weights.NAME` of the inputs, else random; they are returned too.
    """
    model, file = build(settings["config"], inputs)
    model.custom_load_state_dict(file, strict=True)
    return {**read_and_decode(model, settings, inputs), **stored(file)}


def build(config: dict[str, Any], inputs: Arrays) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model of the package and tensors for it."""
    from vortex.model.model import StripedHyena
    from vortex.model.utils import dotdict

    model = StripedHyena(dotdict(config)).eval()
    return model, file_of(model, inputs)
