"""Norms of steps, without what training needs."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.layers.norm import RMSNorm


class NormStep:
    """A norm without its precautions for training: x sqrt(H) weight / size, four operations.

    size is |x| + sqrt(H) eps where eps is added to the root, else hypot(|x|, sqrt(H eps)).
    """

    def __init__(self, norm: RMSNorm) -> None:
        self.norm, width = norm, norm.weight.shape[0]
        self.narrow = norm.weight.dtype not in (torch.float32, torch.float64)
        self.weight = norm.weight * width**0.5
        self.lift = torch.Tensor.add_ if norm.outside else torch.Tensor.hypot_
        eps = norm.eps * width**0.5 if norm.outside else (norm.eps * width) ** 0.5
        self.eps = norm.weight.new_tensor(eps)

    def __call__(self, x_BH: Tensor) -> Tensor:
        """[B, H] -> [B, H]; see `layers.norm`."""
        if self.narrow:
            normed: Tensor = self.norm(x_BH)
            return normed
        size = torch.linalg.vector_norm(x_BH, dim=-1, keepdim=True)
        return (x_BH / self.lift(size, self.eps)).mul_(self.weight)
