"""The rates of merged stages, moved after each step by the counts of all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn

from megatron_hyena.layers.merging.rate import Rate
from megatron_hyena.parallel.mesh import Mesh


class MergingRates:
    """The rate controls of a model's stages, outermost first; does nothing without stages.

    Args:
        sequence_parallel: each tensor rank counts its own slice; otherwise all count the same.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, sequence_parallel: bool) -> None:
        self.rates = [module for module in model.modules() if isinstance(module, Rate)]
        self.mesh, self.sequence_parallel = mesh, sequence_parallel

    def calibrate(self, forward: Callable[[], None]) -> None:
        """Before the first step: shift each stage to its rate on the first batch.

        An inner stage's positions are an outer one's chunks, so stages are set in turn, each after
        a `forward` of the whole batch, in training mode.
        """
        for rate in self.rates:
            self._zero()
            forward()
            rate.start(self._summed(rate.take()))
        self._zero()

    def update(self) -> tuple[dict[str, float], ...]:
        """After a step: the figures of each stage, whose state has moved."""
        return tuple(rate.update(self._summed(rate.take())) for rate in self.rates)

    def _zero(self) -> None:
        for rate in self.rates:
            rate.take()

    def _summed(self, counts: Tensor) -> Tensor:
        dist.all_reduce(counts, group=self.mesh.replicas)
        if self.sequence_parallel:
            dist.all_reduce(counts, group=self.mesh.tensor)
        return counts
