"""The operator of HyenaDNA, written from its published equations to be compared with.

Hyena (arXiv:2302.10866), of order 2, with HyenaDNA's sizes (arXiv:2306.15794):

    x0, x1, v = split(conv3(W_in x + b_in));   y = W_out (x0 * (h conv (x1 * v) + D x1 * v)) + b_out
    h[t] = MLP(features(t)) * exp(-|a| t),     MLP of width 64 with activations sin(w x)

with a depthwise convolution of 3 taps, a filter as long as the sequence and transforms of twice
its length. It is not the authors' code; like theirs it is plain torch with ordinary autograd.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FAST_DECAY, SLOW_DECAY, DECAY_TARGET = 0.3, 1.5, 1e-2
FREQUENCY = 10.0


class Sine(nn.Module):
    """sin(w x) with a learned w per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.full((width,), FREQUENCY))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape."""
        return torch.sin(self.frequency * x)


class ImplicitFilter(nn.Module):
    """h [d, L]: a sine network of the position times a window, for a fixed length L."""

    features: Tensor
    window: Tensor

    def __init__(self, channels: int, length: int, width: int = 64, features: int = 5) -> None:
        super().__init__()
        bands = (features - 1) // 2
        t = torch.linspace(0, 1, length)[:, None]
        angles = 2 * math.pi * torch.arange(length)[:, None] / length
        phase = torch.linspace(1e-4, bands - 1, bands) * angles
        self.register_buffer("features", torch.cat([t, phase.cos(), -phase.sin()], dim=1))
        decay = torch.linspace(
            math.log(DECAY_TARGET) / SLOW_DECAY, math.log(DECAY_TARGET) / FAST_DECAY, channels
        )
        self.register_buffer("window", torch.exp(-t * decay.abs()))
        sine = Sine(width)
        hidden: list[nn.Module] = [nn.Linear(features, width), sine]
        for _ in range(2):
            hidden += [nn.Linear(width, width), sine]
        self.network = nn.Sequential(*hidden, nn.Linear(width, channels, bias=False))

    def forward(self) -> Tensor:
        """The taps, lag 0 first."""
        taps: Tensor = self.network(self.features) * self.window
        return taps.t()


class HyenaDNAOperator(nn.Module):
    """[B, L, d] -> [B, L, d] for sequences of exactly `length`."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.length = length
        self.project_in = nn.Linear(channels, 3 * channels)
        self.short = nn.Conv1d(3 * channels, 3 * channels, 3, groups=3 * channels, padding=2)
        self.filter = ImplicitFilter(channels, length)
        self.skip = nn.Parameter(torch.randn(channels))
        self.project_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the module's docstring."""
        projected = self.project_in(x).transpose(1, 2)
        x0, x1, v = self.short(projected)[..., : self.length].chunk(3, dim=1)
        z = x1 * v
        n = 2 * self.length
        spectrum = torch.fft.rfft(z, n=n) * torch.fft.rfft(self.filter(), n=n)
        convolved = torch.fft.irfft(spectrum, n=n)[..., : self.length] + z * self.skip[:, None]
        out: Tensor = self.project_out((x0 * convolved).transpose(1, 2))
        return out
