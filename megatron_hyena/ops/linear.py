"""Matrix products that change layout for free: sequence-first in, channel-first out, and back.

The residual stream is `[L, B, h]` (Megatron's order); convolutions want `[D, B, L]`. A GEMM reads
a transposed operand at no cost, while a separate transpose costs three times the GEMM on a CPU.
One product per batch row, so a micro-batch of few long sequences is the case this is made for.
Under autocast the operands are cast to its dtype, as `torch.nn.functional.linear` does.
`torch.compile` takes no product that writes into a slice: it is given plain ones to differentiate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products on `x`: autocast's if it is on, its own otherwise."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def to_channel_first(x_LBH: Tensor, weight_DH: Tensor) -> Tensor:
    """weight x: [L, B, h] -> [D, B, L], in `matmul_dtype(x)`."""
    dtype = matmul_dtype(x_LBH)
    x, weight = x_LBH.to(dtype), weight_DH.to(dtype)
    if torch.compiler.is_compiling():
        return torch.matmul(weight, x.permute(1, 2, 0)).transpose(0, 1).contiguous()
    out: Tensor = _ToChannelFirst.apply(x, weight)
    return out


def from_channel_first(y_DBL: Tensor, weight_HD: Tensor) -> Tensor:
    """weight y: [D, B, L] -> [L, B, h], in `matmul_dtype(y)`."""
    dtype = matmul_dtype(y_DBL)
    y, weight = y_DBL.to(dtype), weight_HD.to(dtype)
    if torch.compiler.is_compiling():
        return torch.matmul(y.permute(1, 2, 0), weight.t()).transpose(0, 1).contiguous()
    out: Tensor = _FromChannelFirst.apply(y, weight)
    return out


def _first(x_LBH: Tensor, weight: Tensor) -> Tensor:
    length, batch, _ = x_LBH.shape
    out = x_LBH.new_empty(weight.shape[0], batch, length)
    for b in range(batch):
        torch.mm(weight, x_LBH[:, b].t(), out=out[:, b])
    return out


def _last(y_DBL: Tensor, weight: Tensor) -> Tensor:
    _, batch, length = y_DBL.shape
    out = y_DBL.new_empty(length, batch, weight.shape[0])
    for b in range(batch):
        torch.mm(y_DBL[:, b].t(), weight.t(), out=out[:, b])
    return out


def _outer(y_DBL: Tensor, x_LBH: Tensor) -> Tensor:
    """sum over batch and length: [D, h]."""
    out = y_DBL[:, 0] @ x_LBH[:, 0]
    for b in range(1, y_DBL.shape[1]):
        out.addmm_(y_DBL[:, b], x_LBH[:, b])
    return out


class _ToChannelFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _first(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _last(grads[0], weight.t()), _outer(grads[0], x)


class _FromChannelFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(y, weight)
        return _last(y, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        y, weight = ctx.saved_tensors
        return _first(grads[0], weight.t()), _outer(y, grads[0]).t()
