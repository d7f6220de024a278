"""Convolutions, one position at a time: taps as what is owed to outputs to come, modes as a state.

    taps    owed[t, k] = sum_{j > 0} h[k + j] z[t - j];  y[t] = owed[t, 0] + h[0] z[t]
    modes   s[t, n] = lambda[n] s[t - 1, n] + R[n] z[t];  y[t] = Re sum_n s[t, n]

Both are exact from the first position on: before it everything is 0. A filter of K taps costs K
multiply-adds per channel, whatever was before; N modes cost N. An input's bias and an output's cost
nothing: they are owed from the start. A skip is a mode of lambda = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.generation.carried import Carried
from megatron_hyena.ops.fir import fir_spill


class Filter(Carried):
    """Base of both.

    Attributes:
        input_BD: to be written before each call.
    """

    input_BD: Tensor

    def __call__(self, active_B: Tensor | None) -> Tensor:
        """y [B, D] of the input, until the next call; undefined in rows that are not active."""
        raise NotImplementedError

    def of(self, z_BD: Tensor, active_B: Tensor | None) -> Tensor:
        """y of an input that lies elsewhere."""
        self.input_BD.copy_(z_BD)
        return self(active_B)

    def take(self, past_DBn: Tensor) -> None:
        """Begin behind what a stream remembers of the convolution."""
        raise NotImplementedError


class Taps(Filter):
    """A filter of K taps.

    Args:
        taps_DK: lag 0 first, one row per channel.
        rows: B.
        dtype: of the input; None for that of the taps.
        input_bias, output_bias: [D] each, of every position that is not empty; None for 0.
        streams: how many outputs are interleaved in the channels, for `apart`.
    """

    names = ("owed",)

    def __init__(
        self,
        taps_DK: Tensor,
        rows: int,
        dtype: torch.dtype | None = None,
        input_bias: Tensor | None = None,
        output_bias: Tensor | None = None,
        streams: int = 1,
    ) -> None:
        self.taps_KD, self.dtype, self.streams = taps_DK.t().contiguous(), dtype, streams
        # What only biases owe to the next K outputs; to the last of them, as to any behind it.
        self.start_KD = torch.zeros_like(self.taps_KD[:1]).expand_as(self.taps_KD)
        if input_bias is not None:
            self.start_KD = self.start_KD + self.taps_KD.cumsum(0) * input_bias
        if output_bias is not None:
            self.start_KD = self.start_KD + output_bias
        before = torch.zeros_like(self.start_KD[:1])  # the last output, which nobody reads
        self.owed = torch.cat([before, self.start_KD]).repeat(rows, 1, 1)

    def settle(self, rows: int) -> None:
        """See `Carried.settle`: two states in turn, so that one operation shifts and adds."""
        self._spare = self.owed.clone()
        self.input_BD = self.owed.new_zeros(rows, self.owed.shape[-1], dtype=self.dtype)
        self._input = self.input_BD[:, None]
        self._here, self._there = self._views(self.owed), self._views(self._spare)

    def _views(self, owed: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        outputs = owed[:, 0].unflatten(1, (-1, self.streams)).unbind(-1)
        return owed[:, 1:], owed[:, :-1], outputs

    def take(self, past_DBn: Tensor) -> None:
        """Begin behind the positions before [D, B, h], the nearest last: all that taps reach."""
        self.owe(fir_spill(past_DBn, self.taps_KD.t(), len(self.taps_KD) - 1))

    def owe(self, spilled_DBw: Tensor) -> None:
        """Begin with what positions owe to the next w <= K - 1 outputs, the nearest first."""
        width = spilled_DBw.shape[-1]
        self.owed[:, 1 : 1 + width] = self.start_KD[:width] + spilled_DBw.permute(1, 2, 0)

    def __call__(self, active_B: Tensor | None) -> Tensor:
        """See `Filter`."""
        return self.apart(active_B)[0]

    def apart(self, active_B: Tensor | None) -> tuple[Tensor, ...]:
        """As a call; the outputs of each stream, [B, D / streams]."""
        _, shifted, outputs = self._there
        torch.addcmul(self._here[0], self.taps_KD, self._input, out=shifted)
        if active_B is None:
            self.owed, self._spare = self._spare, self.owed
            self._here, self._there = self._there, self._here
        else:
            torch.where(active_B[:, None, None], self._spare, self.owed, out=self.owed)
        return outputs


class Modes(Filter):
    """A filter of N exponentials, and a skip.

    Args:
        log_pole_DN: minus the rates, complex of modes that turn.
        residue_DN: their weights.
        skip_D: weight of lag 0 beside the modes.
        rows: B.
    """

    names = ("state",)

    def __init__(self, log_pole_DN: Tensor, residue_DN: Tensor, skip_D: Tensor, rows: int) -> None:
        self.pole_DN, self.residue_DN = torch.exp(log_pole_DN), residue_DN
        self.pole_ND = _with_row(self.pole_DN, torch.zeros_like(skip_D))
        self.weight_ND = _with_row(residue_DN, skip_D)
        self.state = self.pole_ND.new_zeros(rows, *self.pole_ND.shape)

    def settle(self, rows: int) -> None:
        """See `Carried.settle`."""
        pairs = _pairs(self.state)  # [B, N + 1, D, 1 or 2]
        self.input_BD = pairs.new_zeros(rows, pairs.shape[2])
        self._input = self.input_BD[:, None, :, None]
        self._pairs, self._weight, self._real = pairs, _pairs(self.weight_ND), pairs[..., 0]

    def take(self, past_DBn: Tensor) -> None:
        """Begin with sum_j lambda^j z[t - 1 - j] of the positions before, [D, B, N]."""
        owed = past_DBn.to(self.state.dtype) * self.residue_DN[:, None]
        self.state[:, : owed.shape[-1]] = owed.permute(1, 2, 0)

    def __call__(self, active_B: Tensor | None) -> Tensor:
        """See `Filter`."""
        before = None if active_B is None else self.state.clone()
        self.state.mul_(self.pole_ND)
        self._pairs.addcmul_(self._weight, self._input)
        if active_B is not None and before is not None:
            torch.where(active_B[:, None, None], self.state, before, out=self.state)
        return self._real.sum(1)


def _with_row(x_DN: Tensor, last_D: Tensor) -> Tensor:
    return torch.cat([x_DN, last_D[:, None].to(x_DN.dtype)], dim=1).t().contiguous()


def _pairs(x: Tensor) -> Tensor:
    """[...] -> [..., 2] of complex numbers, [..., 1] of real ones."""
    return torch.view_as_real(x) if x.is_complex() else x[..., None]
