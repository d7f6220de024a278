"""Long filters as sums of exponentials, so that writing needs no past: a matrix-pencil fit.

A filter h[t] = Re sum_n R[n] lambda[n]^t makes every Hankel matrix of its taps of rank N. The span
of the leading N right singular vectors of one, shifted by one row, gives the poles (Hua and Sarkar,
IEEE Trans. ASSP 38:814, 1990); the weights are least squares on the taps. Lag 0, where the skip
sits, is fitted apart and is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.errors import UserError

BLOCK = 2048
"""Taps that are compared at a time."""
GROWTH = 3.0
"""Nats by which a mode may grow over the taps: a filter need not decay as far as it is used."""
CHANNELS = 16
"""Filters that are fitted at a time."""


@dataclass
class Fit:
    """How to fit, and how well it went.

    Attributes:
        modes: of each filter.
        limit: of the relative error, above which the fit is refused.
        errors: of each filter that was fitted: the largest over its channels of
            |h - fit| / |h|, in the 2-norm over the taps.
    """

    modes: int
    limit: float = 1e-3

    def __post_init__(self) -> None:
        if self.modes < 1 or not self.limit > 0:
            raise UserError(
                f"{self.modes} modes within a relative error of {self.limit}: give 1 mode or more "
                "and an error above 0"
            )
        self.errors: list[float] = []


def fitted(taps_DK: Tensor, fit: Fit) -> tuple[Tensor, Tensor, Tensor]:
    """log poles [D, N], residues [D, N], complex, and skips [D] for taps [D, K], lag 0 first.

    Raises:
        UserError: the relative error is above the limit.
    """
    taps = taps_DK.double()
    found = [_modes(part, fit.modes) for part in taps.split(CHANNELS)]
    log_pole, residue = (torch.cat(part) for part in zip(*found, strict=True))
    skip = taps[:, 0] - residue.sum(1).real
    error = _error(taps, log_pole, residue)
    fit.errors.append(error)
    if error > fit.limit:
        raise UserError(
            f"{fit.modes} modes give a long filter with a relative error of {error:.2g}, above "
            f"{fit.limit:.2g}; give more modes, allow a larger error, or write without fitting"
        )
    wide = torch.complex128 if taps_DK.dtype == torch.float64 else torch.complex64
    return log_pole.to(wide), residue.to(wide), skip.to(taps_DK.dtype)


def _error(taps: Tensor, log_pole: Tensor, residue: Tensor) -> float:
    """The largest relative error of the taps from lag 1 on."""
    wrong = torch.zeros_like(taps[:, 0])
    for start in range(1, taps.shape[1], BLOCK):
        part = taps[:, start : start + BLOCK]
        t = torch.arange(start, start + part.shape[1], dtype=torch.float64)
        made = torch.einsum("dn,dnt->dt", residue, torch.exp(log_pole[..., None] * t)).real
        wrong += (part - made).square().sum(1)
    size = taps[:, 1:].square().sum(1)
    return (
        float((wrong / size.clamp(min=torch.finfo(size.dtype).tiny)).sqrt().max())
        if len(size)
        else 0.0
    )


def _modes(taps: Tensor, modes: int) -> tuple[Tensor, Tensor]:
    """Log poles and residues [D, N] of taps [D, K] from lag 1 on."""
    signal = taps[:, 1:]
    width = signal.shape[1] // 2 + 1
    order = min(modes, width - 1)
    if order < 1:  # at most one tap, which any pole goes through
        log_pole = torch.zeros(*signal.shape, dtype=torch.complex128, device=taps.device)
        return _padded(log_pole, signal.to(log_pole.dtype), modes)
    v = _directions(signal, width, order)
    shift = torch.linalg.lstsq(v[:, :-1], v[:, 1:]).solution
    pole = torch.linalg.eigvals(shift)
    # One of 0 has no logarithm; one that grows may do so by e^`GROWTH` over the taps.
    size = pole.abs().clamp(min=1e-8)
    log_pole = torch.complex(size.log().clamp(max=GROWTH / signal.shape[1]), pole.angle())
    return _padded(log_pole, _weights(signal, log_pole), modes)


def _directions(signal: Tensor, width: int, order: int) -> Tensor:
    """Leading right singular vectors of the Hankel matrix of `width` columns: [D, width, order].

    Of a random mixture of its rows (Halko, Martinsson and Tropp, arXiv:0909.4061), and twice of
    the rows' own products, each by FFT: the matrix itself would not fit.
    """
    rows, size = signal.shape[1] - width + 1, 2 * signal.shape[1]
    spectrum = torch.fft.rfft(signal, size)[:, None]

    def times(mixed: Tensor, columns: int) -> Tensor:
        """[D, p, rows] or [D, p, width] times the matrix or its transpose."""
        turned = torch.fft.rfft(mixed, size).conj()
        return torch.fft.irfft(turned * spectrum, size)[..., :columns]

    generator = torch.Generator().manual_seed(0)
    mixtures = min(2 * order + 8, rows)
    mixed = torch.randn(1, mixtures, rows, generator=generator, dtype=signal.dtype)
    v = times(mixed.to(signal.device), width)
    for _ in range(2):
        v = torch.linalg.qr(v.transpose(1, 2)).Q.transpose(1, 2)
        u = torch.linalg.qr(times(v, rows).transpose(1, 2)).Q.transpose(1, 2)
        v = times(u, width)
    return torch.linalg.svd(v, full_matrices=False).Vh[:, :order].transpose(1, 2)


def _weights(signal: Tensor, log_pole: Tensor) -> Tensor:
    """Residues for lag 0, by least squares on lags 1 to K, through a QR of the exponentials."""
    t = torch.arange(1, signal.shape[1] + 1, dtype=torch.float64, device=signal.device)
    basis = torch.exp(log_pole[:, None, :] * t[:, None])  # [D, K, N]
    scale = basis.abs().square().sum(1, keepdim=True).sqrt().clamp(min=1e-300)
    target = torch.complex(signal, torch.zeros_like(signal))[..., None]
    solution = torch.linalg.lstsq(basis / scale, target, driver="gelsd").solution[..., 0]
    return solution / scale[:, 0]


def _padded(log_pole: Tensor, residue: Tensor, modes: int) -> tuple[Tensor, Tensor]:
    """With modes of weight 0 where a filter has too few taps for all."""
    missing = modes - log_pole.shape[1]
    if not missing:
        return log_pole, residue
    more = torch.zeros(len(log_pole), missing, dtype=torch.complex128, device=log_pole.device)
    return (
        torch.cat([log_pole.to(more.dtype), more - 1.0], 1),
        torch.cat([residue.to(more.dtype), more], 1),
    )
