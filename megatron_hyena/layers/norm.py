"""RMSNorm (arXiv:1910.07467): x / sqrt(mean(x^2) + eps) * weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.layers.parameter import Cut, constant, cut_parameter


class RMSNorm(nn.Module):
    """Normalises the last axis; replicated over tensor ranks."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        cut = Cut((size,), constant(1.0), sequence_partial=True, role="vector")
        self.weight = cut_parameter(cut, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype; statistics in fp32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            return F.rms_norm(wide, self.weight.shape, self.weight, self.eps).to(x.dtype)
