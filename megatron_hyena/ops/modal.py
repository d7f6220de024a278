"""Long causal convolution with a modal filter, in chunks: no FFT, no [D, N, L] tensor.

The filter of channel d is a sum of N real exponentials (Hyena-LI of StripedHyena 2,
arXiv:2503.01868), h[t] = sum_n R[n] exp(-exp(log_rate[n]) t), plus a skip on lag 0. With chunks
of C positions (lambda = exp(-exp(log_rate)), one chunk state S of N numbers per channel):

    local    y_j    = T z_j                      T [C, C] triangular Toeplitz of h[0..C-1]
    state    S_j[n] = sum_t lambda^(C-1-t) z_j[t]
    carry    K_0 = 0,  K_{j+1} = lambda^C K_j + S_j
    correct  y_j[t] += sum_n R[n] lambda^(t+1) K_j[n]

All in fp32 (fp64 for fp64 input). The carry is all that a later chunk, call or rank needs.
Layout as in `ops.fir`: channel-first [D, B, L].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_hyena.ops.fir import compute_dtype, full_precision, pad_to_chunks, toeplitz

CHUNK = 64


def modal_filter(log_rate_DN: Tensor, residue_DN: Tensor, length: int) -> Tensor:
    """Taps h [D, length] of the modal filter, lag 0 first, in the parameters' dtype."""
    t = torch.arange(length, device=log_rate_DN.device, dtype=log_rate_DN.dtype)
    powers = torch.exp(-torch.exp(log_rate_DN)[..., None] * t)
    return torch.einsum("dn,dnt->dt", residue_DN, powers)


def modal_conv(
    z_DBL: Tensor, log_rate_DN: Tensor, residue_DN: Tensor, skip_D: Tensor, chunk: int = CHUNK
) -> Tensor:
    """Causal convolution of z with the modal filter, plus skip * z.

    Args:
        z_DBL: input [D, B, L], any L.
        log_rate_DN: log of the decay rates (per position) [D, N].
        residue_DN: weights of the modes [D, N].
        skip_D: weight of lag 0 beside the modes [D].
        chunk: positions per chunk.
    Returns:
        [D, B, L] in `compute_dtype(z)`.
    """
    dtype, length = compute_dtype(z_DBL), z_DBL.shape[-1]
    rate, residue = torch.exp(log_rate_DN.to(dtype)), residue_DN.to(dtype)
    t = torch.arange(chunk + 1, device=rate.device, dtype=dtype)
    powers = torch.exp(-rate[..., None] * t)  # [D, N, C + 1]: lambda^0 .. lambda^C
    weighted = residue[..., None] * powers
    taps = weighted[..., :chunk].sum(1)
    taps = torch.cat([taps[:, :1] + skip_D.to(dtype)[:, None], taps[:, 1:]], dim=1)
    with full_precision(z_DBL):
        out: Tensor = _ModalChunks.apply(
            pad_to_chunks(z_DBL.to(dtype), chunk),
            toeplitz(taps, chunk, chunk),
            powers[..., :chunk].flip(-1).transpose(1, 2),
            weighted[..., 1:],
            powers[..., chunk],
        )
    return out[..., :length]


def _carries(states: Tensor, decay: Tensor) -> Tensor:
    """K [n, D, B, N] before each chunk, from S [n, D, B, N] and lambda^C [D, 1, N]."""
    carry = torch.zeros_like(states)
    for j in range(1, states.shape[0]):
        torch.addcmul(states[j - 1], carry[j - 1], decay, out=carry[j])
    return carry


class _ModalChunks(torch.autograd.Function):
    """The four lines of the module's docstring and their exact gradients.

    Shapes: z [D, B, n C], toep [D, C, C], into [D, C, N], out_of [D, N, C], decay [D, N].
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, toep: Tensor, into: Tensor, out_of: Tensor, decay: Tensor
    ) -> Tensor:
        channels, batch, _ = z.shape
        rows = z.view(channels, -1, toep.shape[-1])
        states = torch.bmm(rows, into).view(channels, batch, -1, decay.shape[-1])
        carry = _carries(states.permute(2, 0, 1, 3).contiguous(), decay[:, None])
        carry = carry.permute(1, 2, 0, 3).reshape(channels, -1, decay.shape[-1])
        y = torch.baddbmm(torch.bmm(rows, toep), carry, out_of)
        ctx.save_for_backward(z, toep, into, out_of, decay, carry)
        return y.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        with full_precision(grads[0]):
            return _modal_gradients(grads[0], *ctx.saved_tensors)


def _modal_gradients(
    dy: Tensor, z: Tensor, toep: Tensor, into: Tensor, out_of: Tensor, decay: Tensor, carry: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of `_ModalChunks`'s five inputs.

    The adjoint of the carry runs backwards: A_j = dK_j + lambda^C A_{j+1}, and dS_j = A_{j+1}.
    """
    channels, batch, _ = z.shape
    modes, chunk = decay.shape[-1], toep.shape[-1]
    rows, grad = z.view(channels, -1, chunk), dy.reshape(channels, -1, chunk)
    dcarry = torch.bmm(grad, out_of.transpose(1, 2)).view(channels, batch, -1, modes)
    reverse = dcarry.permute(2, 0, 1, 3).flip(0)
    dstates = _carries(reverse.contiguous(), decay[:, None]).flip(0)
    dstates = dstates.permute(1, 2, 0, 3).reshape(channels, -1, modes)
    dz = torch.bmm(grad, toep.transpose(1, 2))
    dz = torch.baddbmm(dz, dstates, into.transpose(1, 2)).view_as(z)
    columns = rows.transpose(1, 2)
    return (
        dz,
        torch.bmm(columns, grad),
        torch.bmm(columns, dstates),
        torch.bmm(carry.transpose(1, 2), grad),
        (dstates * carry).sum(1),
    )
