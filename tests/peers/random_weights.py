"""Weights for peers' models in which nothing is zero, one or unstable: every tensor has a say."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.peers.process import Arrays, with_prefix

# The peers round all others to bf16 when they load a file.
FINE = ("poles", "log_poles", "residues", "inv_freq")


def file_of(model: nn.Module, inputs: Arrays) -> dict[str, Tensor]:
    """A state dict for `model`: `weights.NAME` of the inputs, else random; `model` becomes fp32."""
    model.float()
    given = with_prefix(inputs, "weights.")
    if given:
        return {name: torch.from_numpy(array) for name, array in given.items()}
    draw = torch.Generator().manual_seed(0)
    return {name: _random(name, t, draw) for name, t in model.state_dict().items()}


def _random(name: str, like: Tensor, draw: torch.Generator) -> Tensor:
    kind = name.rsplit(".", 1)[-1]
    if kind == "inv_freq":  # no frequencies of RoPE with base 10000: who recomputes them shows
        return 0.7 ** torch.arange(1.0, len(like) + 1)
    values = _values(kind, name, torch.randn(like.shape, generator=draw))
    return values if kind in FINE else values.bfloat16().float()


def _values(kind: str, name: str, normal: Tensor) -> Tensor:
    if kind == "scale":
        return 1 + 0.3 * normal
    if kind == "log_poles":  # real, negative: decay over 1 to 50 positions
        return -torch.exp(normal - 2)
    if kind == "poles":  # re, im of a number inside the unit circle
        size, angle = torch.sigmoid(normal[..., 0]), math.pi * normal[..., 1].sin()
        return torch.stack([size * angle.cos(), size * angle.sin()], -1)
    if kind in ("D", "bias", "short_filter_bias", "residues"):
        return 0.5 * normal
    if name in ("embedding_layer.weight", "unembed.weight"):
        return normal / 8
    return normal / normal.shape[-1] ** 0.5
