"""The Megatron provider: a layer's edges on Megatron-core's autograd collectives.

Without sequence parallelism, `enter` is Megatron's copy (backward: all-reduce) and `leave` its
all-reduce. With it, the residual stream is cut along the sequence between the two: `enter` is an
all-gather (backward: reduce-scatter) and `leave` a reduce-scatter (backward: all-gather), which
move the same number of bytes (Korthikanti et al., arXiv:2205.05198).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import mappings
from torch import Tensor, nn

from megatron_hyena.layers.parameter import cut_of


class MegatronProvider:
    """One rank's `Provider` in a tensor-parallel group.

    Args:
        group: the tensor-parallel ranks.
        sequence_parallel: keep the residual stream cut along the sequence.
    """

    def __init__(self, group: dist.ProcessGroup, sequence_parallel: bool) -> None:
        self.group, self.sequence_parallel = group, sequence_parallel
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def enter(self, x_LBH: Tensor) -> Tensor:
        """See `Provider.enter`."""
        if self.sequence_parallel:
            return mappings.gather_from_sequence_parallel_region(x_LBH, group=self.group)
        return mappings.copy_to_tensor_model_parallel_region(x_LBH, group=self.group)

    def leave(self, y_LBH: Tensor) -> Tensor:
        """See `Provider.leave`."""
        if self.sequence_parallel:
            return mappings.reduce_scatter_to_sequence_parallel_region(y_LBH, group=self.group)
        return mappings.reduce_from_tensor_model_parallel_region(y_LBH, group=self.group)

    def copy(self, x: Tensor) -> Tensor:
        """See `Provider.copy`."""
        return mappings.copy_to_tensor_model_parallel_region(x, group=self.group)

    def cross_entropy(self, logits_LBV: Tensor, targets_LB: Tensor) -> Tensor:
        """Vocabulary-parallel cross-entropy in fp32, or fp64 for fp64 logits.

        Megatron-core's own rounds every input to fp32, which would hide errors from the
        double-precision proofs.
        """
        logits = logits_LBV if logits_LBV.element_size() == 8 else logits_LBV.float()
        largest = logits.detach().amax(-1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        shifted = logits - largest[..., None]
        local = targets_LB - self.rank * logits.shape[-1]
        elsewhere = (local < 0) | (local >= logits.shape[-1])
        picked = shifted.gather(-1, local.masked_fill(elsewhere, 0)[..., None])[..., 0]
        total = mappings.reduce_from_tensor_model_parallel_region(
            torch.stack([shifted.exp().sum(-1), picked.masked_fill(elsewhere, 0.0)]),
            group=self.group,
        )
        return total[0].log() - total[1]

    def gather_vocabulary(self, logits_LBV: Tensor) -> Tensor:
        """See `Provider.gather_vocabulary`."""
        parts = [torch.empty_like(logits_LBV) for _ in range(self.size)]
        dist.all_gather(parts, logits_LBV.detach().contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


def sum_partial_gradients(module: nn.Module, provider: MegatronProvider) -> None:
    """Under sequence parallelism, sum the gradients of parameters that saw only a slice.

    Norms and output biases are replicated, but each tensor rank applies them to its own slice of
    the sequence. Their gradients are summed as they arrive, before any accumulation, once for
    each backward pass, so every later stage (ZeRO, clipping) sees equal copies.
    """
    if not provider.sequence_parallel or provider.size == 1:
        return

    def summed(gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=provider.group)
        return total

    for parameter in module.parameters():
        if cut_of(parameter).sequence_partial:
            parameter.register_hook(summed)
