"""Router features from bytes alone: an embedding and three dilated causal convolutions.

Reaches back 64 bytes. Every rank has the bytes of the whole sequence, so a slice needs no exchange;
all sums are of a fixed number of terms in a fixed order, in fp32 whatever the precision, so a
byte's features are the same bits in every layout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.layers.merging.similarity import replicated
from megatron_hyena.layers.parameter import normal
from megatron_hyena.ops.fir import compute_dtype

WIDTH = 64
TAPS, DILATIONS = 4, (1, 4, 16)
REACH = (TAPS - 1) * sum(DILATIONS)
"""Bytes before a position that its features depend on."""


class ByteTrunk(nn.Module):
    """e <- e + SiLU(conv(e)), three times, of an own small embedding."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = replicated((vocabulary, WIDTH), normal(1.0))
        self.taps = replicated((len(DILATIONS), TAPS, WIDTH), normal(0.5))

    def forward(self, ids_BL: Tensor, position_BL: Tensor, start: int, stop: int) -> Tensor:
        """Features of the positions [start, stop) of whole sequences: [stop - start, B, `WIDTH`].

        Args:
            ids_BL: bytes, int64.
            position_BL: positions in their documents, which do not see each other.
        """
        first = max(0, start - REACH)
        place = position_BL[:, first:stop].t()
        with torch.autocast(ids_BL.device.type, enabled=False):
            wide = compute_dtype(self.table)
            e = F.embedding(ids_BL[:, first:stop].t(), self.table.to(wide))
            for taps, dilation in zip(self.taps.to(wide), DILATIONS, strict=True):
                e = e + F.silu(_dilated(e, taps, dilation, place))
        return e[start - first :]


def _dilated(e_TBR: Tensor, taps_KR: Tensor, dilation: int, place_TB: Tensor) -> Tensor:
    """sum_k taps[k] e[t - k dilation], within documents."""
    total = taps_KR[0] * e_TBR
    for k in range(1, len(taps_KR)):
        lag = k * dilation
        earlier = F.pad(e_TBR, (0, 0, 0, 0, lag, 0))[: len(e_TBR)]
        total = total + taps_KR[k] * earlier.masked_fill((place_TB < lag)[..., None], 0.0)
    return total
