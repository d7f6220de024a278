"""Long causal convolution with a modal filter, in chunks: no FFT, no [D, N, L] tensor.

The filter of channel d is a sum of N real exponentials (Hyena-LI of StripedHyena 2,
arXiv:2503.01868), h[t] = sum_n R[n] exp(-exp(log_rate[n]) t), plus a skip on lag 0; or the real
part of such a sum with complex R and rates (StripedHyena). With chunks of C positions
(lambda = exp(-exp(log_rate)), one chunk state S of N numbers per channel):

    local    y_j    = T z_j                      T [C, C] triangular Toeplitz of h[0..C-1]
    state    S_j[n] = sum_t lambda^(C-1-t) z_j[t]
    carry    K_0 = 0,  K_{j+1} = lambda^C K_j + S_j
    correct  y_j[t] += sum_n R[n] lambda^(t+1) K_j[n]

All in fp32 (fp64 for fp64 input); complex numbers meet the real signal as pairs. The carry is all
that a later chunk, call or rank needs: N numbers per channel, whatever the length. Where a document
begins, the carry is 0.
Layout as in `ops.fir`: channel-first [D, B, L]; n chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fir import compute_dtype, full_precision, pad_to_chunks, toeplitz
from megatron_hyena.ops.opaque import opaque

CHUNK = 64
Turning = tuple[Tensor, Tensor]
"""Of complex modes: radians per position, and the imaginary parts of the weights, [D, N] each."""
HandOver = Callable[[Tensor, Tensor], Callable[[], Tensor]]
"""Takes the state [D, B, N] that a stretch leaves behind, were its own carry 0, and the rates
[D, N] (complex, where the modes are); starts whatever brings the carry of the stretch; returns a
function that waits for it."""


def modal_filter(
    log_rate_DN: Tensor,
    residue_DN: Tensor,
    length: int,
    turning: Turning | None = None,
) -> Tensor:
    """Taps h [D, length] of the modal filter, lag 0 first, in the parameters' dtype."""
    rate, residue = _poles(log_rate_DN, residue_DN, turning, log_rate_DN.dtype)
    t = torch.arange(length, device=log_rate_DN.device, dtype=log_rate_DN.dtype)
    return _real(torch.einsum("dn,dnt->dt", residue, torch.exp(-rate[..., None] * t)))


def _poles(
    log_rate: Tensor, residue: Tensor, turning: Turning | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rates and residues [D, N], real or complex."""
    rate, residue = torch.exp(log_rate.to(dtype)), residue.to(dtype)
    if turning is None:
        return rate, residue
    phase, imaginary = (part.to(dtype) for part in turning)
    return torch.complex(rate, -phase), torch.complex(residue, imaginary)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _pairs(x: Tensor) -> Tensor:
    """[..., N] complex -> [..., 2 N] real, each number's parts side by side; real ones as is."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x


def _numbers(pairs: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_pairs` where `like` is complex."""
    if not like.is_complex():
        return pairs
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)).contiguous())


def modal_conv(
    z_DBL: Tensor,
    log_rate_DN: Tensor,
    residue_DN: Tensor,
    skip_D: Tensor,
    chunk: int = CHUNK,
    documents: Documents | None = None,
    hand_over: HandOver | None = None,
    turning: Turning | None = None,
) -> Tensor:
    """Causal convolution of z with the modal filter, plus skip * z.

    Args:
        z_DBL: input [D, B, L], any L.
        log_rate_DN: log of the decay rates (per position) [D, N].
        residue_DN: weights of the modes [D, N].
        skip_D: weight of lag 0 beside the modes [D].
        chunk: positions per chunk.
        documents: documents that must not see each other; None for one per row.
        hand_over: brings the carry at the start of z; None for 0.
        turning: makes the modes complex.
    Returns:
        [D, B, L] in `compute_dtype(z)`.
    """
    dtype, length = compute_dtype(z_DBL), z_DBL.shape[-1]
    if documents is not None and hand_over is None and torch.compiler.is_compiling():
        given = (z_DBL, log_rate_DN, residue_DN, skip_D, *(turning or ()))
        tensors = [x.to(dtype) for x in given]
        return _in_graph([*tensors, documents.position_BL], [chunk])
    rate, residue = _poles(log_rate_DN, residue_DN, turning, dtype)
    t = torch.arange(chunk + 1, device=rate.device, dtype=dtype)
    powers = torch.exp(-rate[..., None] * t)  # [D, N, C + 1]: lambda^0 .. lambda^C
    weighted = residue[..., None] * powers
    taps = _real(weighted[..., :chunk].sum(1))
    taps = torch.cat([taps[:, :1] + skip_D.to(dtype)[:, None], taps[:, 1:]], dim=1)
    placed = None if documents is None else documents.chunks(chunk)
    z = z_DBL.to(dtype)
    z = pad_to_chunks(z, chunk) if placed is None else placed.spread(z)
    keep = None if placed is None else placed.keep_nB.to(dtype)[:, None, :, None]
    with full_precision(z):
        into = _pairs(powers[..., :chunk].flip(-1).transpose(1, 2))
        rows = z.view(len(z), -1, chunk)
        y, states = _LocalAndStates.apply(rows, toeplitz(taps, chunk, chunk), into)
        states = _numbers(states.view(*z.shape[:2], -1, into.shape[2]), like=rate)
        states = states.permute(2, 0, 1, 3)
        carry: Tensor = _Carries.apply(states, powers[:, None, :, chunk], keep)
        if hand_over is not None:
            last = ((length - 1) // chunk * chunk, (length - 1) % chunk + 1)
            ends = [last] * z.shape[1] if placed is None else placed.ends
            arrive = hand_over(_end_state(z, into, powers, carry, ends), rate)
        if hand_over is not None:
            carry = _with_incoming(carry, arrive(), rate * chunk, keep)
        carried = _pairs(carry.permute(1, 2, 0, 3).reshape(len(z), -1, rate.shape[1]))
        # The real part of a product of complex numbers is the product of one with the other's
        # conjugate, as pairs.
        out = _pairs(weighted[..., 1:].transpose(1, 2).conj()).transpose(1, 2)
        y = _add_product(y, carried, out).view_as(z)
    return y[..., :length] if placed is None else placed.collect(y)


def _body(given: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    z, log_rate, residue, skip, *rest, position = given
    turning = (rest[0], rest[1]) if rest else None
    documents = Documents(position)
    return modal_conv(z, log_rate, residue, skip, numbers[0], documents, turning=turning)


_in_graph = opaque("modal_conv", _body)


def _end_state(
    z: Tensor, into: Tensor, powers: Tensor, carry: Tensor, ends: list[tuple[int, int]]
) -> Tensor:
    """State [D, B, N] behind each row's last position, `ends` being (start, length) of its chunk.

    lambda^c K + sum_t lambda^(c-1-t) z[t] over the c positions of the last chunk.
    """
    chunk = into.shape[1]
    rows = []
    for b, (start, held) in enumerate(ends):
        carried = powers[..., held] * carry[start // chunk, :, b]
        last = z[:, b : b + 1, start : start + held]
        added = _add_product(_pairs(carried)[:, None], last, into[:, -held:])[:, 0]
        rows.append(_numbers(added, like=carry))
    return torch.stack(rows, dim=1)


def _with_incoming(
    carry: Tensor, incoming_DBN: Tensor, chunk_rate_DN: Tensor, keep: Tensor | None
) -> Tensor:
    """Adds lambda^(C j) times the carry at the start, as far as its document goes."""
    chunks = torch.arange(len(carry), device=carry.device, dtype=_real(carry).dtype)
    decayed = torch.exp(-chunk_rate_DN[:, None] * chunks[:, None, None, None])
    if keep is not None:
        decayed = decayed * keep.cumprod(0)
    return torch.addcmul(carry, decayed, incoming_DBN)


def _add_product(addend: Tensor, rows: Tensor, matrix: Tensor) -> Tensor:
    """addend [D, m, K] + rows [D, m, C] matrix [D, C, K], in full precision backwards too."""
    out: Tensor = _AddProduct.apply(addend, rows, matrix)
    return out


class _AddProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, addend: Tensor, rows: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(rows, matrix)
        return torch.baddbmm(addend, rows, matrix)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, matrix = ctx.saved_tensors
        with full_precision(rows):
            drows = torch.bmm(grads[0], matrix.transpose(1, 2))
            return grads[0], drows, torch.bmm(rows.transpose(1, 2), grads[0])


class _LocalAndStates(torch.autograd.Function):
    """rows [D, m, C], toep [D, C, C], into [D, C, N] -> rows toep, rows into."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, toep: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, toep, into)
        return torch.bmm(rows, toep), torch.bmm(rows, into)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, toep, into = ctx.saved_tensors
        columns = rows.transpose(1, 2)
        with full_precision(rows):
            drows = torch.bmm(grads[0], toep.transpose(1, 2))
            drows = torch.baddbmm(drows, grads[1], into.transpose(1, 2))
            return drows, torch.bmm(columns, grads[0]), torch.bmm(columns, grads[1])


def _doubled(states: Tensor, decay: Tensor) -> Tensor:
    """Carries of `_Carries` within one document, in log2 n steps: for graphs of bounded size.

    After the step of distance s, K_j sums over the 2 s chunks before j (Hillis and Steele, 1986).
    """
    carry = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
    distance = 1
    while distance < len(states) - 1:
        reached = torch.zeros_like(carry[:distance])
        carry = carry + decay * torch.cat([reached, carry[:-distance]])
        decay, distance = decay * decay, 2 * distance
    return carry


class _Carries(torch.autograd.Function):
    """K [n, D, B, N] before each chunk, from states S [n, D, B, N] and lambda^C [D, 1, N].

    K_{j+1} = keep_{j+1} (S_j + lambda^C K_j); the adjoint A_j = dK_j + lambda^C dS_j runs
    backwards with dS_j = keep_{j+1} A_{j+1}. Of complex numbers, conj(lambda^C) and conj(K).
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, decay: Tensor, keep: Tensor | None) -> Tensor:
        if keep is None and torch.compiler.is_compiling():
            carry = _doubled(states, decay)
        else:
            carry = torch.zeros_like(states)
            for j in range(1, len(states)):
                torch.addcmul(states[j - 1], carry[j - 1], decay, out=carry[j])
                if keep is not None:
                    carry[j] *= keep[j]
        ctx.save_for_backward(carry, decay, keep)
        return carry

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        carry, decay, keep = ctx.saved_tensors
        decay = decay.conj()
        if keep is None and torch.compiler.is_compiling():
            dstates = _doubled(grads[0].flip(0), decay).flip(0)
        else:
            dstates = torch.zeros_like(carry)
            for j in range(len(carry) - 2, -1, -1):
                torch.addcmul(grads[0][j + 1], dstates[j + 1], decay, out=dstates[j])
                if keep is not None:
                    dstates[j] *= keep[j + 1]
        return dstates, (dstates * carry.conj()).sum(0).sum(1, keepdim=True), None
