"""From states per byte to one vector per sequence.

States are per byte whatever the model merges inside, so every byte counts the same. A sequence
without a byte to read gives zeros. B batch, L bytes, d channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from megatron_hyena.errors import UserError
from megatron_hyena.layers.parameter import Cut, cut_parameter, normal

POOLINGS = ("mean", "cls", "last", "max", "attention")


class Pooling(nn.Module):
    """One vector of the states of a sequence's readable bytes.

    Args:
        width: channels d.
        kind: `mean`; `cls`, the first byte (which in a causal model has seen nothing else);
            `last`, which has seen all; `max` of each channel; `attention`, a mean weighted by the
            softmax of a learned score.
    """

    def __init__(self, width: int, kind: str = "mean") -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise UserError(f"pooling={kind!r} is unknown; use {', '.join(POOLINGS)}")
        self.kind = kind
        if kind == "attention":
            self.score = cut_parameter(Cut((width,), normal(1 / math.sqrt(width))), 1)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """states [B, L, d], mask [B, L] (not 0: to be read; None: all) -> [B, d].

        fp32 for half precision, otherwise the states' dtype.

        Raises:
            UserError: the mask has another shape.
        """
        read = readable(states, mask)
        wide = states if states.dtype == torch.float64 else states.float()
        wide = wide.masked_fill(~read[..., None], 0.0)  # what is not read may even be NaN
        if self.kind == "max":
            largest = wide.masked_fill(~read[..., None], -math.inf).amax(1)
            return largest.masked_fill(~read.any(1, keepdim=True), 0.0)
        return torch.einsum("bl,bld->bd", self.weights(wide, read), wide)

    def weights(self, wide: Tensor, read: Tensor) -> Tensor:
        """Share of each byte [B, L]; they sum to 1, or to 0 where nothing is read."""
        if self.kind == "mean":
            return read.to(wide.dtype) / read.sum(1, keepdim=True).clamp(min=1)
        if self.kind == "attention":
            scores = wide @ self.score.to(wide.dtype)
            scores = scores.masked_fill(~read, torch.finfo(wide.dtype).min)
            return scores.softmax(1).masked_fill(~read, 0.0)
        count = read.cumsum(1)
        wanted = 1 if self.kind == "cls" else count[:, -1:]
        return (read & (count == wanted)).to(wide.dtype)


def readable(states: Tensor, mask: Tensor | None) -> Tensor:
    """Which bytes of states [B, L, d] are read, bool [B, L].

    Raises:
        UserError: states or mask of another shape.
    """
    if states.dim() != 3 or not states.shape[1]:
        raise UserError(
            f"states of shape {list(states.shape)} are not [batch, length, width] with a length "
            "of 1 or more"
        )
    if mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    if mask.shape != states.shape[:2]:
        raise UserError(
            f"attention_mask of shape {list(mask.shape)} does not fit states of shape "
            f"{list(states.shape)}; give one number per byte"
        )
    return mask != 0
