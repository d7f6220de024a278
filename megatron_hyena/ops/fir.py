"""Short causal convolutions, in two forms; both are linear in the length.

Up to `SHIFTED_TAPS` taps: a sum of shifted copies of the input, each times its tap.

Beyond: products with small Toeplitz matrices. A sequence is cut in chunks of C positions. Inside a
chunk a causal convolution is a product with a C x C triangular Toeplitz matrix; a filter of
K <= C + 1 taps reaches no further back than the previous chunk (the two-pass form of
StripedHyena 2, arXiv:2503.01868). The previous chunk is also what a neighbouring rank or an
earlier call would hand over.

Layout: tensors are channel-first `[D, B, L]` (channels, batch, length): a chunk is then a
contiguous row and channels are the batch of the matrix product; nothing is transposed.
D channels, G filter groups (channel c belongs to group c // (D // G)), K taps, C chunk, n chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.opaque import opaque

SHIFTED_TAPS = 8
"""Most taps that are summed as shifted copies; more cost more than a Toeplitz product."""
CACHED_ELEMENTS = 1 << 18
"""Elements of a tensor that a CPU works on at a time, so that all taps find them in its cache."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """Convolutions run in fp32, or in fp64 for fp64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def full_precision(x: Tensor) -> torch.autocast:
    """Autocast off on x's device: it would turn the matrix products of a convolution to bf16."""
    return torch.autocast(x.device.type, enabled=False)


def pad_to_chunks(z_DBL: Tensor, chunk: int) -> Tensor:
    """Zeros behind the end, up to a multiple of `chunk`; contiguous."""
    missing = -z_DBL.shape[-1] % chunk
    return F.pad(z_DBL, (0, missing)) if missing else z_DBL.contiguous()


def toeplitz(taps_GK: Tensor, chunk: int, width: int) -> Tensor:
    """Matrices M [G, chunk, width] with M[g, j, i] = taps[g, i - j], zero outside the taps.

    A row vector of one chunk times M is that chunk's contribution to the `width` outputs that
    begin at the chunk's first position.
    """
    used = taps_GK[..., :width]
    padded = F.pad(used, (chunk - 1, width - used.shape[-1]))
    return padded.unfold(-1, width, 1).flip(1)


def fir_chunk(taps: int) -> int:
    """Chunk length for `taps`: the smallest power of two, at least 16, with taps <= C + 1."""
    return max(16, 1 << max(taps - 2, 0).bit_length())


def causal_fir(z_DBL: Tensor, taps_GK: Tensor, documents: Documents | None = None) -> Tensor:
    """Causal convolution y[t] = sum_k taps[k] z[t - k] with K taps per group of channels.

    Args:
        z_DBL: input [D, B, L], any L, any floating dtype.
        taps_GK: taps [G, K], lag 0 first; G divides D.
        documents: documents that must not see each other; None for one per row.
    Returns:
        [D, B, L] in `compute_dtype(z)`; positions before the start count as zero.
    """
    if documents is not None:
        if torch.compiler.is_compiling():
            dtype = compute_dtype(z_DBL)
            return _in_graph([z_DBL.to(dtype), taps_GK.to(dtype), documents.position_BL], [])
        gaps = documents.gaps(taps_GK.shape[-1] - 1)
        return gaps.collect(causal_fir(gaps.spread(z_DBL), taps_GK))
    length, dtype = z_DBL.shape[-1], compute_dtype(z_DBL)
    if length == 0:  # the history that a filter of one tap needs
        return z_DBL.to(dtype)
    if taps_GK.shape[-1] <= SHIFTED_TAPS:
        taps = taps_GK[:, :length].to(dtype).repeat_interleave(len(z_DBL) // len(taps_GK), 0)
        if torch.compiler.is_compiling():
            return _shifted_sum(z_DBL.to(dtype), taps)
        shifted: Tensor = _ShiftedSum.apply(z_DBL.to(dtype), taps)
        return shifted
    chunk = fir_chunk(taps_GK.shape[-1])
    with full_precision(z_DBL):
        matrix = toeplitz(taps_GK.to(dtype), chunk, 2 * chunk)
        out: Tensor = _ToeplitzPair.apply(pad_to_chunks(z_DBL.to(dtype), chunk), matrix)
    return out[..., :length]


def _body(given: Sequence[Tensor], _: Sequence[int]) -> Tensor:
    z, taps, position = given
    return causal_fir(z, taps, Documents(position))


_in_graph = opaque("causal_fir", _body)


def fir_spill(history_DBh: Tensor, taps_GK: Tensor, count: int) -> Tensor:
    """What the positions before a sequence add to its first `count` outputs: [D, B, count].

    Args:
        history_DBh: the h positions before, the nearest last; [D, B, h].
        taps_GK: as for `causal_fir`.
    """
    behind = F.pad(history_DBh, (0, count))
    return causal_fir(behind, taps_GK)[..., history_DBh.shape[-1] :]


def _cached_channels(x_DBL: Tensor) -> Iterator[slice]:
    """Slices of the channels that are worked on at a time: all at once unless on a CPU."""
    channels, batch, length = x_DBL.shape
    step = max(1, CACHED_ELEMENTS // (batch * length)) if x_DBL.device.type == "cpu" else channels
    for start in range(0, channels, step):
        yield slice(start, start + step)


def _shifted_sum(z: Tensor, taps_DK: Tensor) -> Tensor:
    """`_ShiftedSum` for `torch.compile`, which fuses the terms itself and takes no `out=`."""
    y = z * taps_DK[:, None, :1]
    for k in range(1, taps_DK.shape[1]):
        y = y + F.pad(z[..., :-k], (k, 0)) * taps_DK[:, None, k : k + 1]
    return y


class _ShiftedSum(torch.autograd.Function):
    """z [D, B, L] and taps [D, K], K <= L -> y[t] = sum_k taps[k] z[t - k]."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(z, taps)
        weights, y = taps[:, None, None], torch.empty_like(z)
        for part in _cached_channels(z):
            torch.mul(z[part], weights[part, ..., 0], out=y[part])
            for k in range(1, taps.shape[1]):
                y[part, :, k:].addcmul_(z[part, :, :-k], weights[part, ..., k])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        z, taps = ctx.saved_tensors
        weights, length = taps[:, None, None], z.shape[-1]
        dz, dtaps = torch.empty_like(z), taps.new_empty(*taps.shape, z.shape[1])
        for part in _cached_channels(z):
            grad = grads[0][part]
            torch.mul(grad, weights[part, ..., 0], out=dz[part])
            for k in range(taps.shape[1]):
                later, earlier = grad[..., k:], z[part, :, : length - k]
                torch.linalg.vecdot(later, earlier, out=dtaps[part, k])
                if k:
                    dz[part, :, :-k].addcmul_(later, weights[part, ..., k])
        return dz, dtaps.sum(-1)


class _ToeplitzPair(torch.autograd.Function):
    """z [D, B, n C] and M [G, C, 2C] -> y[chunk i] = z[i] M[:, :C] + z[i - 1] M[:, C:].

    Written out because autograd would keep the [.., 2C] products and copy each slice.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, matrix: Tensor) -> Tensor:
        groups, chunk, _ = matrix.shape
        rows = z.view(groups, -1, chunk)
        y = torch.bmm(rows, matrix[..., :chunk]).view(*z.shape[:2], -1, chunk)
        spill = torch.bmm(rows, matrix[..., chunk:]).view_as(y)
        y[:, :, 1:] += spill[:, :, :-1]
        ctx.save_for_backward(z, matrix)
        return y.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        z, matrix = ctx.saved_tensors
        groups, chunk, _ = matrix.shape
        rows = z.view(groups, -1, chunk)
        here = grads[0].reshape(*z.shape[:2], -1, chunk)
        following = torch.zeros_like(here)
        following[:, :, :-1] = here[:, :, 1:]
        here, following = here.reshape(groups, -1, chunk), following.view(groups, -1, chunk)
        columns = rows.transpose(1, 2)
        with full_precision(z):
            dz = torch.bmm(here, matrix[..., :chunk].transpose(1, 2))
            dz.baddbmm_(following, matrix[..., chunk:].transpose(1, 2))
            dm = torch.cat([torch.bmm(columns, here), torch.bmm(columns, following)], dim=-1)
        return dz.view_as(z), dm
