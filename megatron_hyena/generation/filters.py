"""Convolutions, one position at a time: taps as what is owed to outputs to come, modes as a state.

    taps    owed[t, k] = sum_{j > 0} h[k + j] z[t - j];  y[t] = owed[t, 0] + h[0] z[t]
    modes   s[t] = lambda s[t - 1] + z[t];  y[t] = Re sum_n R[n] s[t, n] + skip z[t]

Both are exact from the first position on: before it everything is 0. A filter of K taps costs K
multiply-adds per channel, whatever was before; N modes cost N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_hyena.generation.carried import Carried, keep
from megatron_hyena.ops.fir import fir_spill


class Taps(Carried):
    """A filter of K taps.

    Args:
        taps_DK: lag 0 first, one row per channel.
        rows: B.
    """

    names = ("owed",)

    def __init__(self, taps_DK: Tensor, rows: int) -> None:
        self.taps_KD = taps_DK.t().contiguous()
        # The last is owed nothing ever; it lets one operation shift and add.
        self._owe(taps_DK.new_zeros(rows, len(self.taps_KD) + 1, len(taps_DK)))

    def _owe(self, owed: Tensor) -> None:
        """Make `owed` the state. Views are made once, since making one takes as long as adding."""
        spare = torch.zeros_like(owed)
        self.owed, self._spare = owed, spare
        self._here, self._there = ((x[:, 1:], x[:, :-1], x[:, 0]) for x in (owed, spare))

    def select(self, rows: Tensor) -> None:
        """See `Carried.select`."""
        self._owe(self.owed[rows])

    def join(self, others: Sequence[Carried]) -> None:
        """See `Carried.join`."""
        every = [one.owed for one in (self, *others) if isinstance(one, Taps)]
        self._owe(torch.cat(every))

    def take(self, history_DBh: Tensor) -> None:
        """Begin behind `history` [D, B, h], the nearest last: all that the taps reach."""
        self.owe(fir_spill(history_DBh, self.taps_KD.t(), len(self.taps_KD) - 1))

    def owe(self, spilled_DBw: Tensor) -> None:
        """Begin with what is owed to the next w <= K - 1 outputs, the nearest first."""
        self.owed[:, 1 : 1 + spilled_DBw.shape[-1]] = spilled_DBw.permute(1, 2, 0)

    def __call__(self, z_BD: Tensor, active_B: Tensor | None) -> Tensor:
        """z [B, D] -> y [B, D], valid until the next call, and in active rows alone."""
        _, shifted, y = self._there
        torch.addcmul(self._here[0], self.taps_KD, z_BD[:, None], out=shifted)
        if active_B is None:
            self.owed, self._spare = self._spare, self.owed
            self._here, self._there = self._there, self._here
        else:
            torch.where(active_B[:, None, None], self._spare, self.owed, out=self.owed)
        return y


class Modes(Carried):
    """A filter of N exponentials, and a skip.

    Args:
        log_pole_DN: minus the rates, complex of modes that turn.
        residue_DN: their weights.
        skip_D: weight of lag 0 beside the modes.
        rows: B.
    """

    names = ("state",)

    def __init__(self, log_pole_DN: Tensor, residue_DN: Tensor, skip_D: Tensor, rows: int) -> None:
        self.pole_DN, self.skip_D = torch.exp(log_pole_DN), skip_D
        # The real part of a product is the product of pairs with one of them conjugated.
        residue = residue_DN.conj() if residue_DN.is_complex() else residue_DN
        self.residue = _pairs(residue.resolve_conj())
        self.state = self.pole_DN.new_zeros(rows, *log_pole_DN.shape)

    def take(self, carried_DBN: Tensor) -> None:
        """Begin with the state behind the positions before, [D, B, N]."""
        self.state = carried_DBN.permute(1, 0, 2).to(self.pole_DN.dtype).clone()

    def __call__(self, z_BD: Tensor, active_B: Tensor | None) -> Tensor:
        """z [B, D] -> y [B, D]; undefined in rows that are not active."""
        if active_B is None:
            state = self.state.mul_(self.pole_DN).add_(z_BD[..., None])
        else:
            state = keep(active_B, self.state * self.pole_DN + z_BD[..., None], self.state)
            self.state = state
        return torch.addcmul(torch.linalg.vecdot(_pairs(state), self.residue), self.skip_D, z_BD)


def _pairs(x: Tensor) -> Tensor:
    """[..., N] complex -> [..., 2 N] real; real ones as they are."""
    return torch.view_as_real(x).flatten(-2) if x.is_complex() else x
