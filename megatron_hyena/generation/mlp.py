"""The gated MLP of a block, one position at a time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.layers.mlp import GatedMLP


class MlpStep:
    """W3 (act(W1 x) * (W2 x)); see `layers.mlp`.

    gelu(g) v = (g + g erf(g / sqrt 2)) v / 2, one half of which falls to the last product: of few
    numbers in fp32 `F.gelu` takes longer than four operations.
    """

    def __init__(self, mlp: GatedMLP) -> None:
        self.activation = mlp.activation
        self.gate_value, self.output = mlp.gate_value.t(), mlp.output.t()
        narrow = mlp.gate_value.dtype not in (torch.float32, torch.float64)
        self.by_erf = mlp.activation is F.gelu and not narrow
        self.share = 0.5 if self.by_erf else 1.0

    def settle(self, rows: int) -> None:
        """As `Carried.settle`: room for both halves."""
        self.both = self.gate_value.new_zeros(rows, self.gate_value.shape[1])
        self.gate, self.value = self.both.chunk(2, dim=-1)

    def add(self, x_BH: Tensor, stream_BH: Tensor) -> None:
        """Add to the residual stream, in place, what comes of x, which is normed."""
        torch.mm(x_BH, self.gate_value, out=self.both)
        if self.by_erf:
            erf = torch.mul(self.gate, math.sqrt(0.5)).erf_()
            gate = torch.addcmul(self.gate, self.gate, erf)
        else:
            gate = self.activation(self.gate)
        stream_BH.addmm_(gate.mul_(self.value), self.output, alpha=self.share)
