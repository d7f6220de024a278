"""The rates of merged stages, moved after each step by the counts of all ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from megatron_hyena.layers.merging.keeping import Rates
from megatron_hyena.parallel.mesh import Mesh


class MergingRates(Rates):
    """`Rates` whose counts are summed over all ranks.

    Args:
        sequence_parallel: each tensor rank counts its own slice; otherwise all count the same.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, sequence_parallel: bool) -> None:
        super().__init__(model, self._over_ranks)
        self.mesh, self.sequence_parallel = mesh, sequence_parallel

    def _over_ranks(self, counts: Tensor) -> Tensor:
        dist.all_reduce(counts, group=self.mesh.replicas)
        if self.sequence_parallel:
            dist.all_reduce(counts, group=self.mesh.tensor)
        return counts
