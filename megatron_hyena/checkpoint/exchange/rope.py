"""RoPE frequencies: those of a base and a scaling, and the base and scaling of stored ones.

Other programs store the frequencies and use what is stored, whatever their settings say; ours are
base^(-2i / d) / scaling, of which base^(-2i / d) may be rounded to bf16, as it is in published
files of Evo 2. d numbers of a head, i = 0 .. d/2 - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.ops.attention import rotary_frequencies

ROUNDING = 5e-7
"""Relative deviation of frequencies computed in fp32."""


@dataclass(frozen=True)
class Rope:
    """Frequencies base^(-2i / d), `rounded` to bf16 or not, of positions / scaling."""

    base: float
    scaling: float
    rounded: bool = False

    def frequencies(self, head_dim: int) -> Tensor:
        """base^(-2i / d), fp32 [d / 2]: what others store; they divide positions themselves."""
        return rotary_frequencies(head_dim, self.base, self.rounded).float()


def stored_rope(stored: Mapping[str, Tensor], said: Rope, losses: Losses) -> Rope:
    """Base and scaling of the stored frequencies, `said` by the settings where these agree.

    Frequencies of no base, or not the same in all layers, are a loss (`inv_freq`): then of the
    base nearest to those of the first layer.
    """
    found = said
    for number, (name, frequencies) in enumerate(stored.items()):
        wide = frequencies.double()
        if number == 0:
            coarse = Rope(said.base, said.scaling, rounded=True)
            fits = [r for r in (said, coarse) if _deviation(wide, r, said) < ROUNDING]
            found = fits[0] if fits else _nearest(wide, said)
        apart = _deviation(wide, found, said)
        if not apart <= ROUNDING:  # NaN too
            losses.add(
                "inv_freq",
                f"the frequencies {name}, which differ from those of model.rope_base="
                f"{found.base:.9g} by up to {apart:.2g} of their size",
            )
            break
    return found


def _deviation(stored: Tensor, rope: Rope, said: Rope) -> float:
    """Largest relative difference; the peer divides positions by its own scaling."""
    frequencies = rotary_frequencies(2 * len(stored), rope.base, rope.rounded)
    wanted = frequencies / rope.scaling * said.scaling
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
    own = Rope(base, said.scaling / math.exp(first))
    for whole in (10.0 ** round(math.log10(base)), float(max(1, round(base)))):
        for rounded in (False, True):
            plain = Rope(whole, said.scaling, rounded)
            if _deviation(stored, plain, said) < ROUNDING:
                return plain
    return own
