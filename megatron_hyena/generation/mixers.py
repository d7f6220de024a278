"""Every mixer of the pattern, one position at a time; the numbers are those of its parallel pass.

`S M L` carry state of fixed size, `W` a window, `A` keys and values of all positions. `H` and `G`
carry what their long filters owe to each of the positions to come, or states of fitted modes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.generation.attention import AttentionStep, WindowStep
from megatron_hyena.generation.carried import Carried, MixerStep, Now, Past
from megatron_hyena.generation.filters import Filter, Modes, Taps
from megatron_hyena.generation.plan import Plan
from megatron_hyena.layers.attention import Attention, WindowAttention
from megatron_hyena.layers.genomic import GenomicHyenaOperator
from megatron_hyena.layers.hyena import HyenaMixer
from megatron_hyena.layers.hyena_order import HyenaOperator
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.striped import HyenaLI, HyenaMR, HyenaSE
from megatron_hyena.ops.fir import causal_fir, compute_dtype


class HyenaStep(MixerStep):
    """Projections, featurizer, gates and output; subclasses have the convolution."""

    def __init__(self, mixer: HyenaMixer, rows: int) -> None:
        self.mixer, self.streams = mixer, mixer.streams
        self.projection, self.output = mixer.projection.t(), mixer.output.t()
        self.bias, self.wide = mixer.bias, compute_dtype(mixer.projection)
        before, behind = (
            None if bias is None else bias.to(self.wide)
            for bias in (mixer.projection_bias, mixer.featurizer_bias)
        )
        taps, dtype = mixer.featurizer.flip(1).to(self.wide), mixer.projection.dtype
        self.featurizer = Taps(taps, rows, dtype, before, behind, self.streams)
        self.featurizer_bias = behind

    def parts(self) -> list[Carried]:
        """See `Carried.parts`."""
        return [self.featurizer, *self.filters()]

    def filters(self) -> list[Filter]:
        """The convolutions."""
        raise NotImplementedError

    def mix(self, streams: tuple[Tensor, ...], active_B: Tensor | None) -> Tensor:
        """The featurized streams, [B, D] each, combined."""
        raise NotImplementedError

    def add(self, x_BH: Tensor, stream_BH: Tensor, now: Now) -> None:
        """See `MixerStep.add`."""
        torch.mm(x_BH, self.projection, out=self.featurizer.input_BD)
        y = self.mix(self.featurizer.apart(now.active_B), now.active_B)
        y = self.modulated(y, x_BH).to(x_BH.dtype)
        stream_BH.add_(self.bias).addmm_(y, self.output)

    def modulated(self, y_BD: Tensor, x_BH: Tensor) -> Tensor:
        """A last gate; none by default."""
        return y_BD

    def idle(self, active_B: Tensor) -> None:
        """See `Step.idle`: the projection of an empty slot is 0."""
        self.featurizer.input_BD.zero_()
        self.mix(self.featurizer.apart(active_B), active_B)


class StripedStep(HyenaStep):
    """`S`, `M` and `L`: x1 * conv(x2 * v)."""

    def __init__(self, mixer: HyenaSE | HyenaMR | HyenaLI, rows: int) -> None:
        super().__init__(mixer, rows)
        self.convolution: Taps | Modes = _CONVOLUTIONS[type(mixer)](mixer, self.wide, rows)

    def filters(self) -> list[Filter]:
        """See `HyenaStep.filters`."""
        return [self.convolution]

    def mix(self, streams: tuple[Tensor, ...], active_B: Tensor | None) -> Tensor:
        """See `HyenaStep.mix`."""
        x1, x2, v = streams
        torch.mul(x2, v, out=self.convolution.input_BD)
        return x1 * self.convolution(active_B)

    def take(self, past: Past) -> None:
        """See `Step.take`."""
        projected = past.take()
        self.featurizer.take(projected.to(self.wide))
        if isinstance(self.mixer, HyenaSE):
            self.convolution.take(self._products(projected.to(self.wide), past.positions))
        else:
            self.convolution.take(past.take())

    def _products(self, projected_DBh: Tensor, positions: int) -> Tensor:
        """x2 * v of the positions before [D, B, h - 2], of their projections."""
        taps = self.featurizer.taps_KD.t()
        features = causal_fir(projected_DBh, taps)[..., taps.shape[1] - 1 :]
        if self.featurizer_bias is not None:
            features = features + self.featurizer_bias[:, None, None]
        _, x2, v = features.unflatten(0, (-1, self.streams)).unbind(1)
        z = x2 * v
        z[..., : max(0, z.shape[-1] - positions)] = 0.0  # a bias is no feature before the start
        return z


def _short(mixer: HyenaSE, wide: torch.dtype, rows: int) -> Taps:
    taps = _per_channel(mixer.taps.flip(1).to(wide), mixer)
    return Taps(taps if mixer.skip is None else _with_skip(taps, mixer.skip), rows)


def _medium(mixer: HyenaMR, wide: torch.dtype, rows: int) -> Taps:
    return Taps(_with_skip(_per_channel(mixer.regularised(wide), mixer), mixer.skip), rows)


def _long(mixer: HyenaLI, wide: torch.dtype, rows: int) -> Modes:
    log_pole, residue = -torch.exp(mixer.log_rate.to(wide)), mixer.residue.to(wide)
    if (turning := mixer.turning()) is not None:
        phase, imaginary = (part.to(wide) for part in turning)
        log_pole, residue = torch.complex(log_pole, phase), torch.complex(residue, imaginary)
    return Modes(log_pole, residue, mixer.skip.to(wide), rows)


def _per_channel(taps_GK: Tensor, mixer: HyenaMixer) -> Tensor:
    width = len(mixer.featurizer) // mixer.streams
    return taps_GK.repeat_interleave(width // len(taps_GK), dim=0)


def _with_skip(taps_DK: Tensor, skip_D: Tensor) -> Tensor:
    return torch.cat([taps_DK[:, :1] + skip_D.to(taps_DK.dtype)[:, None], taps_DK[:, 1:]], dim=1)


_CONVOLUTIONS: dict[type, Callable[[Any, torch.dtype, int], Taps | Modes]] = {
    HyenaSE: _short,
    HyenaMR: _medium,
    HyenaLI: _long,
}


class OrderStep(HyenaStep):
    """`H`: one long filter for each order, whose taps reach as far as there are steps.

    Args:
        mixer: the layer.
        rows: B.
        steps: that each row takes, at most.
        plan: how far rows may come.
    """

    def __init__(self, mixer: HyenaOperator, rows: int, steps: int, plan: Plan) -> None:
        super().__init__(mixer, rows)
        orders = range(len(mixer.filters))
        self.taps = [plan.taps(mixer, order, self.wide) for order in orders]
        modes = [plan.modes(mixer, order, self.wide) for order in orders]
        self.convolutions: list[Taps | Modes] = [
            Taps(taps[:, : steps + 1], rows) if found is None else Modes(*found, rows)
            for taps, found in zip(self.taps, modes, strict=True)
        ]

    def filters(self) -> list[Filter]:
        """See `HyenaStep.filters`."""
        return list(self.convolutions)

    def mix(self, streams: tuple[Tensor, ...], active_B: Tensor | None) -> Tensor:
        """See `HyenaStep.mix`."""
        *gates, z = streams
        for gate, convolution in zip(gates, self.convolutions, strict=True):
            z = gate * convolution.of(z, active_B)
        return z

    def modulated(self, y_BD: Tensor, x_BH: Tensor) -> Tensor:
        """See `HyenaStep.modulated`."""
        gate = cast(HyenaOperator, self.mixer).gate
        return y_BD if gate is None else y_BD * torch.sigmoid(F.linear(x_BH, gate).to(y_BD.dtype))

    def take(self, past: Past) -> None:
        """See `Step.take`."""
        self.featurizer.take(past.take().to(self.wide))
        self.take_filters(past)

    def take_filters(self, past: Past) -> None:
        """The inputs of each filter until now."""
        for h, convolution in zip(self.taps, self.convolutions, strict=True):
            z = past.take().to(self.wide)
            if isinstance(convolution, Modes):
                convolution.take(_state_behind(z, convolution.pole_DN))
                continue
            count = len(convolution.taps_KD) - 1
            if count:
                transform = cast(HyenaOperator, self.mixer).transform
                reach = min(h.shape[1], z.shape[-1] + count)
                convolution.owe(transform(F.pad(z, (0, count)), h[:, :reach])[..., z.shape[-1] :])


def _state_behind(z_DBn: Tensor, pole_DN: Tensor, block: int = 1024) -> Tensor:
    """sum_j lambda^j z[n - 1 - j], [D, B, N]."""
    state = pole_DN.new_zeros(len(z_DBn), z_DBn.shape[1], pole_DN.shape[1])
    for part in z_DBn.split(block, dim=-1):
        lag = torch.arange(part.shape[-1] - 1, -1, -1, device=part.device)
        powers = pole_DN[..., None] ** lag  # [D, N, l]
        new = torch.einsum("dnl,dbl->dbn", powers, part.to(pole_DN.dtype))
        state = new + state * (pole_DN ** part.shape[-1])[:, None]
    return state


class GenomicStep(OrderStep):
    """`G`: `H` with its two branches; conservation of what is written is unknown, its gate 1."""

    def __init__(self, mixer: GenomicHyenaOperator, rows: int, steps: int, plan: Plan) -> None:
        super().__init__(mixer, rows, steps, plan)
        motif, structure, wide = mixer.motif, mixer.structure, self.wide
        self.motif = Taps((motif.scale[:, None] * motif.taps).to(wide), rows)
        rate = torch.exp(structure.log_rate.to(wide))
        residue = structure.scale[:, None].to(wide) * structure.weight.to(wide)
        residue = residue * -torch.expm1(-rate)
        self.structure = Modes(-rate, residue, torch.zeros_like(rate[:, 0]), rows)

    def filters(self) -> list[Filter]:
        """See `HyenaStep.filters`."""
        return [self.motif, self.structure, *self.convolutions]

    def mix(self, streams: tuple[Tensor, ...], active_B: Tensor | None) -> Tensor:
        """See `HyenaStep.mix`."""
        branches = self.motif.of(streams[-1], active_B) + self.structure.of(streams[-1], active_B)
        return super().mix(streams, active_B) + branches

    def take_filters(self, past: Past) -> None:
        """The branches before the filters."""
        self.motif.take(past.take().to(self.wide))
        self.structure.take(past.take())
        super().take_filters(past)


def mixer_step(mixer: Mixer, sign: str, rows: int, steps: int, plan: Plan) -> MixerStep:
    """A mixer's step.

    Args:
        sign: of the pattern, for messages.
        rows: B.
        steps: that each row takes, at most.
        plan: how far rows may come.
    Raises:
        UserError: the mixer's class is none of those that come with the library.
    """
    kind = type(mixer)
    if kind in _ORDERS:
        return _ORDERS[kind](mixer, rows, steps, plan)
    if kind in _CONVOLUTIONS:
        return StripedStep(cast(HyenaSE, mixer), rows)
    if kind in _ATTENTIONS:
        return _ATTENTIONS[kind](mixer, rows)
    raise UserError(
        f"layers of the sign {sign!r} cannot write base by base, only those of S, M, L, H, G, A "
        "and W; read in pieces with Stream instead"
    )


_ORDERS: dict[type, Callable[..., MixerStep]] = {
    HyenaOperator: OrderStep,
    GenomicHyenaOperator: GenomicStep,
}
_ATTENTIONS: dict[type, Callable[[Any, int], MixerStep]] = {
    Attention: AttentionStep,
    WindowAttention: WindowStep,
}
