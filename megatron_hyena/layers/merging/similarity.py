"""How alike two neighbouring positions are: the router's logit z, sigmoid(z) the similarity.

All of it runs in fp32 (fp64 for fp64 input) whatever the weights are, on every tensor rank alike.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.layers.merging.across import shifted
from megatron_hyena.layers.parameter import Cut, Init, Role, cut_parameter, normal
from megatron_hyena.layers.provider import Context

SMALLEST = 1e-4
"""Similarities of `Cosine` stay this far from 0 and 1."""


def replicated(shape: tuple[int, ...], init: Init, role: Role = "router") -> nn.Parameter:
    """A parameter that every tensor rank holds and applies to its own slice of the stream."""
    return cut_parameter(Cut(shape, init, sequence_partial=True, role=role), 1)


class Mlp(nn.Module):
    """The seed's similarity of two neighbours, looking back: a two-layer network of both.

    z_t = w2 . ReLU(W_a x_{t-1} + W_b x_t + b1) + b2

    At first W_b = -W_a: what all positions share, which grows while a model learns which bytes
    occur at all, cancels instead of drowning what tells neighbours apart.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.pair = replicated((2 * width, features), _opposite(1 / math.sqrt(features)))
        self.bias = replicated((width,), normal(0.1))
        self.out = replicated((width,), normal(1 / math.sqrt(width)))
        self.offset = replicated((1,), normal(0.01))

    def forward(self, x_LBR: Tensor, stream: Context) -> Tensor:
        """x [L, B, r] -> z [L, B]."""
        earlier, own = F.linear(x_LBR, self.pair.to(x_LBR.dtype)).chunk(2, dim=-1)
        hidden = torch.relu(shifted(earlier, stream) + own + self.bias.to(own.dtype))
        return hidden @ self.out.to(own.dtype) + self.offset.to(own.dtype)


class Cosine(nn.Module):
    """H-Net's router (arXiv:2507.07955): similarity (1 + cos(W_q x_{t-1}, W_k x_t)) / 2."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.query = replicated((features, features), _identity)
        self.key = replicated((features, features), _identity)

    def forward(self, x_LBR: Tensor, stream: Context) -> Tensor:
        """x [L, B, r] -> z [L, B]."""
        query = F.normalize(F.linear(x_LBR, self.query.to(x_LBR.dtype)), dim=-1)
        key = F.normalize(F.linear(x_LBR, self.key.to(x_LBR.dtype)), dim=-1)
        cosine = (shifted(query, stream) * key).sum(-1)
        return torch.logit((1 + cosine) / 2, eps=SMALLEST)


SIMILARITIES: dict[str, type[Mlp] | type[Cosine]] = {"mlp": Mlp, "cosine": Cosine}


def _opposite(std: float) -> Init:
    """[W; -W], W of N(0, std^2)."""

    def draw(full: Tensor, generator: torch.Generator) -> None:
        half = full[: len(full) // 2].normal_(0.0, std, generator=generator)
        full[len(full) // 2 :] = -half

    return draw


def _identity(full: Tensor, generator: torch.Generator) -> None:
    torch.nn.init.eye_(full)
