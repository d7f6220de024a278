"""Long causal convolution with a free-form filter, by FFT: linear, never circular.

Hyena's implicit filters (arXiv:2302.10866) have no short state, so they need the transform. The
transform's length is the smallest even 7-smooth number that holds the linear convolution, and the
backward pass is written out: three real transforms each way, and only the inputs are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fir import compute_dtype
from megatron_hyena.ops.opaque import opaque


@torch.compiler.assume_constant_result
def fft_length(least: int) -> int:
    """Smallest even number >= `least` with no prime factor above 7."""
    return _fft_length(least)


@lru_cache(maxsize=256)
def _fft_length(least: int) -> int:
    n = least + least % 2
    while True:
        rest = n
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2


def fft_conv(z_DBL: Tensor, filter_DK: Tensor, documents: Documents | None = None) -> Tensor:
    """Causal convolution y[t] = sum_k filter[k] z[t - k].

    Args:
        z_DBL: input [D, B, L].
        filter_DK: taps [D, K], lag 0 first; those beyond L are not used.
        documents: documents that must not see each other, each transformed by itself; None for
            one per row.
    Returns:
        [D, B, L] in `compute_dtype(z)`.
    """
    if documents is not None:
        if torch.compiler.is_compiling():
            dtype = compute_dtype(z_DBL)
            return _in_graph([z_DBL.to(dtype), filter_DK.to(dtype), documents.position_BL], [])
        parts: list[list[Tensor]] = [[] for _ in range(z_DBL.shape[1])]
        for part in documents.segments():
            piece = z_DBL[:, part.row : part.row + 1, part.start : part.stop]
            parts[part.row].append(fft_conv(piece, filter_DK))
        return torch.cat([torch.cat(row, dim=2) for row in parts], dim=1)
    dtype = compute_dtype(z_DBL)
    taps = filter_DK[:, : z_DBL.shape[-1]]
    out: Tensor = _FFTConv.apply(z_DBL.to(dtype), taps.to(dtype))
    return out


def _body(given: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    z, taps, position = given
    return fft_conv(z, taps, Documents(position))


_in_graph = opaque("fft_conv", _body)


class _FFTConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, taps: Tensor) -> Tensor:
        length = z.shape[-1]
        n = fft_length(length + taps.shape[-1] - 1)
        ctx.save_for_backward(z, taps)
        spectrum = torch.fft.rfft(z, n=n)
        spectrum *= torch.fft.rfft(taps, n=n)[:, None]
        return torch.fft.irfft(spectrum, n=n)[..., :length]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        z, taps = ctx.saved_tensors
        length, count = z.shape[-1], taps.shape[-1]
        n = fft_length(length + count - 1)
        grad = torch.fft.rfft(grads[0], n=n)
        product = grad * torch.fft.rfft(z, n=n).conj()
        dtaps = torch.fft.irfft(product.sum(1), n=n)[..., :count]
        grad *= torch.fft.rfft(taps, n=n)[:, None].conj()
        return torch.fft.irfft(grad, n=n)[..., :length], dtaps
