"""Forms of what our Hyena layers fold: decayed taps, and modes as poles."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.checkpoint.exchange.mapping import Form, same
from megatron_hyena.config.model import MR_SLOWEST_DECAY, HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.striped import mr_decay


def decayed_taps(config: HyenaGLTConfig) -> Form:
    """Out: the taps that `M` convolves with. Back: they are the taps of a model without decay."""
    slowest = MR_SLOWEST_DECAY[config.mr_decay]
    if slowest is None:
        return Form(same, same)

    def out(taps: Tensor) -> tuple[Tensor]:
        decay = mr_decay(slowest, len(taps), taps.shape[1], torch.float32, taps.device)
        return (taps.float() * decay,)

    return Form(out, same, exact=False)


def log_poles(name: str) -> Form:
    """log_rate [H, n] and -exp(log_rate) as [H, n, 1]; `name` is for messages."""

    def out(log_rate: Tensor) -> tuple[Tensor]:
        return (-log_rate.exp().unsqueeze(-1),)

    def back(poles: Tensor) -> tuple[Tensor]:
        if not poles.is_meta and bool((poles >= 0).any()):
            raise UserError(
                f"{name}: {int((poles >= 0).sum())} of {poles.numel()} log poles are not below 0 "
                f"(the largest is {float(poles.max()):.3g}), so these modes never decay, which "
                "L cannot say; the file is damaged or not of Evo 2"
            )
        return ((-poles).log().squeeze(-1),)

    return Form(out, back, exact=False)


def poles(name: str, turning: bool) -> Form:
    """log_rate (and phase, if `turning`) [H, n] and the poles [H, n, 1, 2]: real, imaginary part.

    p = exp(-exp(log_rate) + i phase), computed in fp64.
    """

    def out(log_rate: Tensor, phase: Tensor | None = None) -> tuple[Tensor]:
        size = (-log_rate.double().exp()).exp()
        angle = torch.zeros_like(size) if phase is None else phase.double()
        found = torch.stack([size * angle.cos(), size * angle.sin()], -1)[:, :, None].float()
        _check_inside(found, name)
        return (found,)

    def back(stored: Tensor) -> tuple[Tensor, ...]:
        _check_inside(stored, name)
        wide = stored.double()[:, :, 0]
        size = torch.linalg.vector_norm(wide, dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        log_rate = (-size.log()).log().float()
        return (log_rate, torch.atan2(wide[..., 1], wide[..., 0]).float())[: 1 + turning]

    return Form(out, back, exact=False)


def residues(turning: bool) -> Form:
    """residue (and residue_imaginary, if `turning`) [H, n] and residues [H, n, 1, 2]."""

    def out(real: Tensor, imaginary: Tensor | None = None) -> tuple[Tensor]:
        other = torch.zeros_like(real) if imaginary is None else imaginary
        return (torch.stack([real, other], -1)[:, :, None],)

    def back(stored: Tensor) -> tuple[Tensor, ...]:
        return stored[:, :, 0].unbind(-1)[: 1 + turning]

    return Form(out, back)


def _check_inside(poles: Tensor, name: str) -> None:
    if poles.is_meta:
        return
    size = torch.linalg.vector_norm(poles.double(), dim=-1)
    if bool((size >= 1).any()):
        raise UserError(
            f"{name}: {int((size >= 1).sum())} of {size.numel()} poles are not inside the unit "
            f"circle (the largest is {float(size.max()):.9g}), so these modes never decay; L and "
            "fp32 poles cannot say that"
        )
