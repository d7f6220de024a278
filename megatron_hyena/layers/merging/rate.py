"""Keeping the asked rate: counts of a step, a shift of the router, and a loss.

The rate of a learned router is what its logits make it; this room holds three forces on it.
A *shift* of all logits moves, after each optimizer step, towards the quantile of the step's logits
that gives the asked rate. A *loss* (H-Net's ratio loss, with the fraction of earlier steps in place
of the batch's) teaches the router itself. The *budget* of a window (`ops.merging.admit`) bounds
what the two let through. Counts are integers, so their sums over ranks and micro-batches are exact
and every layout shifts alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatron_hyena.config.merging import StageShape
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.ops.merging import Chunks

BINS, LARGEST = 2048, 16.0
"""Of the histogram of logits; logits beyond +-`LARGEST` count in the last bins."""
FIXED_POINT = 1 << 20
"""Complexities are summed as integers, in these units."""
LAG = 0.9
"""Weight of earlier steps in lagged means."""
LARGEST_TARGET = 0.95
"""Of the free positions that are to open; above it there is no ratio loss, only the shift."""
POSITIONS, ANCHORS, WANTED, OPENED, COMPLEXITY, SCALARS = range(6)


class Rate(nn.Module):
    """State of one stage's rate control. Its buffers are part of a checkpoint, the counts are not.

    Attributes:
        shift: added to all logits.
        wanted: lagged fraction of free positions (no anchors) that want to open.
        complexity: lagged mean complexity.
        counts: of this rank since the last update.
    """

    shift: Tensor
    wanted: Tensor
    complexity: Tensor
    counts: Tensor

    def __init__(self, shape: StageShape, config: HyenaGLTConfig) -> None:
        super().__init__()
        self.shape, self.eta = shape, config.controller_eta
        self.gamma = config.gamma if config.adaptive else 0.0
        self.target = self._free_target(shape.window, 1)
        pulls = config.ratio_loss == "lagged" and self.target <= LARGEST_TARGET
        self.weight = config.ratio_weight if pulls else 0.0
        wide = torch.float64
        self.register_buffer("shift", torch.zeros((), dtype=wide))
        self.register_buffer("wanted", torch.full((), self.target, dtype=wide))
        self.register_buffer("complexity", torch.full((), 0.5, dtype=wide))
        size = SCALARS + BINS + shape.window + 1
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rate:
        """Moves to other devices, but keeps its dtypes: half a controller would lose the rate."""
        kept = {name: (b.dtype, b) for name, b in self.named_buffers()}
        super()._apply(fn, recurse)
        for name, (dtype, old) in kept.items():
            moved = getattr(self, name)
            if moved.dtype != dtype:
                setattr(self, name, old.to(moved.device))
        return self

    def _free_target(self, positions: int, anchors: int) -> float:
        """Fraction of the free positions that is to open, for `keep` of all positions."""
        free = max(positions - anchors, 1)
        wanted = (self.shape.keep * positions - anchors) / free
        return min(max(wanted, 1 / (4 * free)), 1 - 1 / (4 * free))

    def penalty(self, probability_LB: Tensor) -> Tensor:
        """Ratio loss of each position: weight N / (N - 1) (N F - 1) p, N = 1 / target; [L, B].

        N / (N - 1) has no bound as nothing is to be merged: see `LARGEST_TARGET`.
        """
        n = 1 / self.target
        slope = self.weight * n / (n - 1) * (n * self.wanted - 1)
        return slope.to(probability_LB.dtype) * probability_LB

    @torch.no_grad()
    def observe(
        self,
        wanted_LB: Tensor,
        logits_LB: Tensor | None,
        chunks: Chunks,
        anchors_LB: Tensor,
        counted_LB: Tensor,
        complexity_LB: Tensor | None,
    ) -> None:
        """Add a forward pass to the counts. Logits include the shift; None without a router."""
        opened = chunks.opens_nWB.flatten(0, 1)
        free = counted_LB & ~anchors_LB
        counts = self.counts
        counts[POSITIONS] += counted_LB.sum()
        counts[ANCHORS] += (anchors_LB & counted_LB).sum()
        counts[OPENED] += (opened & counted_LB).sum()
        if complexity_LB is not None:
            fixed = (complexity_LB.double() * FIXED_POINT).round().long()
            counts[COMPLEXITY] += (fixed * counted_LB).sum()
        lengths = chunks.lengths(counted_LB.view_as(chunks.opens_nWB)).flatten()
        counts[SCALARS + BINS :].scatter_add_(0, lengths, torch.ones_like(lengths))
        counts[WANTED] += (wanted_LB & free).sum()
        if logits_LB is None:
            return
        bins = ((logits_LB.double() + LARGEST) * (BINS / (2 * LARGEST))).floor()
        bins = bins.nan_to_num().clamp(0, BINS - 1).long().flatten()  # the loss tells of a NaN
        counts[SCALARS : SCALARS + BINS].scatter_add_(0, bins, free.long().flatten())

    def take(self) -> Tensor:
        """This rank's counts, and start again from 0."""
        taken = self.counts.clone()
        self.counts.zero_()
        return taken

    def start(self, totals: Tensor) -> None:
        """Before training: go to the rate, and to the mean complexity, of one batch."""
        positions, complexity = int(totals[POSITIONS]), int(totals[COMPLEXITY])
        mean = complexity / FIXED_POINT / max(positions, 1)
        self.shift += self.gamma * (mean - self.complexity)  # the logits were of the old mean
        self.complexity.fill_(mean)
        self._move(totals, eta=1.0)

    @torch.no_grad()
    def update(self, totals: Tensor) -> dict[str, float]:
        """Move the state by the counts of a whole step, summed over all ranks.

        Returns:
            `kept` fraction of positions, `wanted` of free ones, `dropped` share of the wanted that
            found no slot, `shift`, and the quantiles `length_50` and `length_95` of chunk lengths.
        """
        positions, anchors, wanted, opened, complexity = totals[:SCALARS].tolist()[:5]
        if positions <= anchors:
            return {}
        free = positions - anchors
        self._move(totals, self.eta, self._compensation(wanted, opened - anchors))
        self.wanted.mul_(LAG).add_((1 - LAG) * wanted / free)
        self.complexity.mul_(LAG).add_((1 - LAG) * complexity / FIXED_POINT / positions)
        lengths = totals[SCALARS + BINS :].double().cpu()
        lengths[0] = 0
        middle, long = (
            int(torch.searchsorted(lengths.cumsum(0), share * lengths.sum()))
            for share in (0.5, 0.95)
        )
        return {
            "kept": opened / positions,
            "wanted": wanted / free,
            "dropped": (wanted + anchors - opened) / max(wanted, 1),
            "shift": self.shift.item(),
            "length_50": float(middle),
            "length_95": float(long),
        }

    @staticmethod
    def _compensation(wanted: int, opened: int) -> float:
        """How many must want to open for one to: the budget drops some where chunks crowd."""
        return max(wanted / opened, 1.0) if opened > 0 else 1.0

    def _move(self, totals: Tensor, eta: float, compensation: float = 1.0) -> None:
        """Shift by a share of the distance to the quantile that gives the rate.

        `compensation` raises the fraction that is to want to open; at rest, what opens is as asked.
        """
        histogram = totals[SCALARS : SCALARS + BINS].double().cpu()
        positions, anchors = totals[[POSITIONS, ANCHORS]].tolist()
        if histogram.sum() > 0:
            target = self._free_target(positions, anchors) * compensation
            target = min(target, 1 - 1 / (4 * max(positions - anchors, 1)))
            self.shift -= eta * _quantile(histogram, 1 - target)


def _quantile(histogram: Tensor, share: float) -> float:
    """The logit below which `share` of the histogram lies, linear inside a bin."""
    below = torch.cat([histogram.new_zeros(1), histogram.cumsum(0)])
    wanted = share * float(below[-1])
    at = min(int(torch.searchsorted(below, wanted, right=True)) - 1, BINS - 1)
    inside = (wanted - float(below[at])) / max(float(histogram[at]), 1.0)
    return (at + min(inside, 1.0)) * (2 * LARGEST / BINS) - LARGEST


def rate_state(model: nn.Module) -> dict[str, Tensor]:
    """The buffers of a model's rate controls, by name; training moves them, alike on every rank."""
    return {
        f"{name}.{key}": buffer
        for name, module in model.named_modules()
        if isinstance(module, Rate)
        for key, buffer in module.state_dict().items()
    }
