"""The Megatron provider: a layer's edges on Megatron-core's autograd collectives.

Without sequence parallelism, `enter` is Megatron's copy (backward: all-reduce) and `leave` its
all-reduce. With it, the residual stream is cut along the sequence between the two: `enter` is an
all-gather (backward: reduce-scatter) and `leave` a reduce-scatter (backward: all-gather), which
move the same number of bytes (Korthikanti et al., arXiv:2205.05198).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import mappings
from torch import Tensor, nn

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.layers.provider import Context
from megatron_hyena.parallel.context import ContextRanks
from megatron_hyena.parallel.mesh import Mesh
from megatron_hyena.parallel.traffic import Direction

GATHER, SCATTER, REDUCE = 1, 1, 2
"""Multiples of (T - 1) / T of the whole tensor that a rank of T sends: in an all-gather, a
reduce-scatter, an all-reduce."""


class MegatronProvider:
    """One rank's `Provider` in a mesh.

    Args:
        mesh: its tensor ranks share the channels, its context ranks each sequence.
        sequence_parallel: keep the residual stream cut along the sequence over the tensor ranks.
        exchanges: by sign of the pattern, how its layers reach the other stretches of a sequence;
            see `config.exchange`.
    """

    def __init__(
        self, mesh: Mesh, sequence_parallel: bool, exchanges: Mapping[str, str] | None = None
    ) -> None:
        self.group, self.sequence_parallel = mesh.tensor, sequence_parallel
        self.rank, self.size = mesh.tensor_rank, mesh.tensor_size
        self.traffic, self.exchanges = mesh.traffic, exchanges or {}
        self.context_group = mesh.context
        self.context: Context = ContextRanks(mesh.context, self.traffic, "")
        stream = mesh.sequence if sequence_parallel else mesh.context
        self.stream: Context = ContextRanks(stream, self.traffic, "merging")
        self.sequence_multiple = self.context.size * (self.size if sequence_parallel else 1)
        self.kind, self.exchange = "", "local"

    def of_layer(self, kind: str) -> MegatronProvider:
        """See `Provider.of_layer`: another exchange, and counted by itself."""
        own = copy.copy(self)
        own.context = ContextRanks(self.context_group, self.traffic, kind)
        own.kind, own.exchange = kind, self.exchanges.get(kind, "local")
        return own

    def enter(self, x_LBH: Tensor) -> Tensor:
        """See `Provider.enter`."""
        if self.sequence_parallel:
            whole = mappings.gather_from_sequence_parallel_region(x_LBH, group=self.group)
            self._count(whole, GATHER, "forward")
            return self._count_back(whole, whole, SCATTER)
        whole = mappings.copy_to_tensor_model_parallel_region(x_LBH, group=self.group)
        return self._count_back(whole, whole, REDUCE)

    def leave(self, y_LBH: Tensor) -> Tensor:
        """See `Provider.leave`."""
        if self.sequence_parallel:
            self._count(y_LBH, SCATTER, "forward")
            own = mappings.reduce_scatter_to_sequence_parallel_region(y_LBH, group=self.group)
            return self._count_back(own, y_LBH, GATHER)
        self._count(y_LBH, REDUCE, "forward")
        return mappings.reduce_from_tensor_model_parallel_region(y_LBH, group=self.group)

    def copy(self, x: Tensor) -> Tensor:
        """See `Provider.copy`."""
        copied = mappings.copy_to_tensor_model_parallel_region(x, group=self.group)
        return self._count_back(copied, copied, REDUCE)

    def cross_entropy(self, logits_LBV: Tensor, targets_LB: Tensor) -> Tensor:
        """Vocabulary-parallel cross-entropy in fp32, or fp64 for fp64 logits.

        Megatron-core's own rounds every input to fp32, which would hide errors from the
        double-precision proofs.
        """
        logits = logits_LBV if logits_LBV.element_size() == 8 else logits_LBV.float()
        largest = logits.detach().amax(-1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.group)
        self._count(largest, 3 * REDUCE, "forward")  # with the two sums below
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

    def _count(self, whole: Tensor, times: int, direction: Direction) -> None:
        """A collective on `whole`, which sends `times` (T - 1) / T of its bytes."""
        sent = times * (self.size - 1) * whole.numel() * whole.element_size() // self.size
        self.traffic.add(self.kind, direction, sent)

    def _count_back(self, result: Tensor, whole: Tensor, times: int) -> Tensor:
        """Count the backward collective of `result` when it runs."""
        if result.requires_grad:
            shape = torch.empty(whole.shape, dtype=whole.dtype, device="meta")
            result.register_hook(lambda _: self._count(shape, times, "backward"))
        return result


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
