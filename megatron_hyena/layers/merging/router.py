"""Where chunks open: similarity to the position before, complexity, and the rate's shift.

    a_t = (logit(threshold) - z_t) / temperature + gamma (c_w - c_ref) + shift,   p_t = sigmoid(a_t)

A position wants to open a chunk where a_t > 0, that is where its similarity to its predecessor is
below the threshold, shifted by `layers.merging.rate` to the asked rate. c_w is the complexity of
the windows before w (or, where the model is not causal and `complexity=global` asks for it, of the
whole document), c_ref its lagged mean: complexity moves chunks about and keeps their number.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.merging import StageShape
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.merging.across import scan_across, shifted
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.rate import Rate
from megatron_hyena.layers.merging.similarity import SIMILARITIES, replicated
from megatron_hyena.layers.merging.trunk import WIDTH
from megatron_hyena.layers.norm import RMSNorm
from megatron_hyena.layers.parameter import constant, normal
from megatron_hyena.layers.provider import Context
from megatron_hyena.ops.fir import compute_dtype, full_precision

MEMORY = 0.5
"""Weight of a window's mean, from one window to the next, in the mean that complexity sees."""


class Router(nn.Module):
    """Logits of opening a chunk at each position."""

    def __init__(self, shape: StageShape, config: HyenaGLTConfig) -> None:
        super().__init__()
        features = WIDTH if config.router_input == "trunk" else config.hidden_size
        similarity = "cosine" if config.merger == "hnet" else config.similarity
        self.norm = RMSNorm(features, config.norm_eps)
        self.similarity = SIMILARITIES[similarity](features, config.hidden_size)
        self.rate = Rate(shape, config)
        learned = config.adaptive and config.complexity in ESTIMATORS
        self.complexity = ESTIMATORS[config.complexity](features) if learned else None
        self.adaptive, self.gamma, self.window = config.adaptive, config.gamma, shape.window
        self.temperature = config.router_temperature
        self.threshold_logit = math.log(config.threshold / (1 - config.threshold))

    def forward(self, x_LBH: Tensor, axis: Axis, stream: Context) -> tuple[Tensor, Tensor | None]:
        """Logits and, if adaptive, complexity, both [L, B] in fp32 (fp64 for fp64)."""
        x = axis.mask(x_LBH) if axis.router_LBR is None else axis.router_LBR
        with full_precision(x):
            x = self.norm(x.to(compute_dtype(x)))
            z = self.similarity(x, stream)
            logits = (self.threshold_logit - z) / self.temperature
            complexity = self._complexity(x, axis, stream)
            if complexity is not None:
                offset = complexity - self.rate.complexity.to(z.dtype)
                logits = logits + self.gamma * offset
            return logits + self.rate.shift.to(z.dtype), complexity

    def _complexity(self, x_LBR: Tensor, axis: Axis, stream: Context) -> Tensor | None:
        if self.complexity is not None:
            learned: Tensor = self.complexity(x_LBR, axis, self.window, stream)
            mean = self.rate.complexity.to(learned.dtype)
            return torch.where(self.complexity.unknown(axis, self.window), mean, learned)
        if not self.adaptive:
            return None
        assert axis.complexity_LB is not None
        return axis.complexity_LB.to(x_LBR.dtype)


class Complexity(nn.Module):
    """The seed's estimator sigmoid(MLP(mean)), of the windows before, never of the window itself.

    h_w = MEMORY h_{w-1} + (1 - MEMORY) mean_w, begun anew in each document; c_w = f(h_{w-1}).
    Of a document's first window nothing is known: it counts as the mean, and f(0) is never used.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        inner = max(1, features // 2)
        self.weight_in = replicated((inner, features), normal(1 / math.sqrt(features)))
        self.bias_in = replicated((inner,), constant(0.0))
        self.weight_out = replicated((inner,), normal(1 / math.sqrt(inner)))
        self.bias_out = replicated((1,), constant(0.0))

    def forward(self, x_LBR: Tensor, axis: Axis, window: int, stream: Context) -> Tensor:
        """c [L, B], the same over each window."""
        mean = self.mean(x_LBR, axis, window, stream)
        weight, bias, weight_out, bias_out = (
            w.to(mean.dtype) for w in (self.weight_in, self.bias_in, self.weight_out, self.bias_out)
        )
        hidden = torch.relu(mean @ weight.t() + bias)
        c = torch.sigmoid(hidden @ weight_out + bias_out)
        return c.repeat_interleave(window, dim=0)

    def unknown(self, axis: Axis, window: int) -> Tensor:
        """Positions without anything to compute it from, bool [L, B]."""
        return _begun(axis, window).repeat_interleave(window, dim=0)

    def mean(self, x_LBR: Tensor, axis: Axis, window: int, stream: Context) -> Tensor:
        """What each window's complexity is computed from: [n, B, r]."""
        sums, count = _window_sums(x_LBR, axis.present, window)
        mean = sums / count.clamp(min=1.0)
        begun = _begun(axis, window)
        keep = torch.where(begun, 0.0, MEMORY).to(mean.dtype)
        memory = scan_across(keep, (1 - MEMORY) * mean, stream)
        return shifted(memory, stream).masked_fill(begun[..., None], 0.0)


class GlobalComplexity(Complexity):
    """The same estimator of the mean over the whole document, padding left out, as the seed has it.

    Only for models that are not causal: each window sees what lies behind it.
    """

    def unknown(self, axis: Axis, window: int) -> Tensor:
        """None: bool [1, 1]."""
        return torch.zeros_like(axis.begins[:1, :1])

    def mean(self, x_LBR: Tensor, axis: Axis, window: int, stream: Context) -> Tensor:
        """[n, B, r], the same for all windows of a document but for rounding.

        Sums from the left, up to and with the window, and from the right, behind it.
        """
        own = torch.cat(_window_sums(x_LBR, axis.counted_LB, window), dim=-1)
        goes_on = (~_begun(axis, window)).to(own.dtype)
        left = scan_across(goes_on, own, stream)
        # What a window passes on to the one before it is nothing where its document begins.
        turned = goes_on.flip(0)
        passed = turned[..., None] * own.flip(0)
        # One step ahead of all, so that each window gets what came before its own.
        keep, passed = F.pad(turned, (0, 0, 1, 0), value=1.0), F.pad(passed, (0, 0, 0, 0, 1, 0))
        total = left + scan_across(keep, passed, stream.reversed())[:-1].flip(0)
        return total[..., :-1] / total[..., -1:].clamp(min=1.0)


ESTIMATORS: dict[str, type[Complexity]] = {"window": Complexity, "global": GlobalComplexity}
"""By the name of `model.complexity`; others come from bytes alone."""


def _window_sums(x_LBR: Tensor, of_LB: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Of each window, the sum over the positions `of` it, and how many: [n, B, r] and [n, B, 1]."""
    weight = of_LB.to(x_LBR.dtype).unflatten(0, (-1, window))[..., None]
    return (x_LBR.unflatten(0, (-1, window)) * weight).sum(1), weight.sum(1)


def _begun(axis: Axis, window: int) -> Tensor:
    """Whether a document begins in the window (with it), bool [n, B]."""
    return axis.begins.unflatten(0, (-1, window)).any(1)
