"""RMSNorm (arXiv:1910.07467): x / sqrt(mean(x^2) + eps) * weight.

The published Hyena models (Evo 1, Evo 2; savanna) have x / (sqrt(mean(x^2)) + eps) * weight
instead, which differs where a vector is small.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.parameter import Cut, constant, cut_parameter


class RMSNorm(nn.Module):
    """Normalises the last axis; replicated over tensor ranks.

    Args:
        size: of that axis.
        eps: see the module's docstring.
        outside: eps is added to the root, not under it.
    """

    def __init__(self, size: int, eps: float, outside: bool = False) -> None:
        super().__init__()
        self.eps, self.outside = eps, outside
        cut = Cut((size,), constant(1.0), sequence_partial=True, role="vector")
        self.weight = cut_parameter(cut, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype; statistics in fp32 or wider."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            if self.outside:
                # Of a vector of zeros its gradient is 0, that of a plain root would not be finite.
                root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / wide.shape[-1] ** 0.5
                return (wide / (root + self.eps) * self.weight).to(x.dtype)
            weight = self.weight.to(wide.dtype)
            return F.rms_norm(wide, weight.shape, weight, self.eps).to(x.dtype)


def block_norm(config: HyenaGLTConfig) -> RMSNorm:
    """A norm of the residual stream."""
    return RMSNorm(config.hidden_size, config.norm_eps, config.norm_eps_outside)
