"""RoPE frequencies: those of a base and a scaling, and the base and scaling of stored ones.

Other programs store the frequencies and use what is stored, whatever their settings say; ours are
base^(-2i / d) / scaling, exactly. d numbers of a head, i = 0 .. d/2 - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.lossy import Losses

ROUNDING = 5e-7
"""Relative deviation of frequencies computed in fp32."""


@dataclass(frozen=True)
class Rope:
    """Frequencies base^(-2i / d) of positions / scaling."""

    base: float
    scaling: float

    def frequencies(self, head_dim: int) -> Tensor:
        """base^(-2i / d), fp32 [d / 2]: what others store; they divide positions themselves."""
        i = torch.arange(0, head_dim, 2, dtype=torch.float64)
        return (self.base ** (-i / head_dim)).float()


def stored_rope(stored: Mapping[str, Tensor], said: Rope, losses: Losses) -> Rope:
    """Base and scaling of the stored frequencies, `said` by the settings where these agree.

    Frequencies of no base, or not the same in all layers, are a loss (`inv_freq`): then of the
    base nearest to those of the first layer.
    """
    found = said
    for number, (name, frequencies) in enumerate(stored.items()):
        wide = frequencies.double()
        if number == 0:
            found = said if _deviation(wide, said, said) < ROUNDING else _nearest(wide, said)
        apart = _deviation(wide, found, said)
        if apart > ROUNDING:
            losses.add(
                "inv_freq",
                f"the frequencies {name}, which differ from those of model.rope_base="
                f"{found.base:.9g} by up to {apart:.2g} of their size"
                + (" (as if rounded to bf16)" if apart < 2**-8 else ""),
            )
            break
    return found


def _deviation(stored: Tensor, rope: Rope, said: Rope) -> float:
    """Largest relative difference; the peer divides positions by its own scaling."""
    head_dim = 2 * len(stored)
    i = torch.arange(0, head_dim, 2, dtype=torch.float64)
    wanted = rope.base ** (-i / head_dim) / rope.scaling * said.scaling
    return float((stored / wanted - 1).abs().max())


def _nearest(stored: Tensor, said: Rope) -> Rope:
    """a r^i by least squares of logarithms: base r^(-d/2), scaling divided by a."""
    count = len(stored)
    i = torch.arange(count, dtype=torch.float64)
    logs = stored.log()
    spread = (i - i.mean()).square().sum()
    slope = float(((i - i.mean()) * logs).sum() / spread) if count > 1 else 0.0
    first = float(logs.mean() - slope * i.mean())
    base = math.exp(-slope * count) if count > 1 else said.base
    plain = Rope(float(round(base)), said.scaling)
    if round(base) >= 1 and _deviation(stored, plain, said) < max(
        ROUNDING, 2 * _deviation(stored, Rope(base, said.scaling / math.exp(first)), said)
    ):
        return plain  # a round number that fits as well
    return Rope(base, said.scaling / math.exp(first))
