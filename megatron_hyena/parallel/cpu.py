"""The concessions to machines without a GPU; nothing else in the project makes any.

Megatron-core's collectives allocate their results on `torch.cuda.current_device()`, whatever the
device of their input. Where there is no GPU that call raises; answering it with the CPU makes the
same code run on gloo.

gloo has no reduce-scatter: torch answers with an all-reduce of the whole tensor. An all-to-all and
a local sum move half as many bytes and take a third of the time.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import mappings
from torch import Tensor


def enable_megatron_on_cpu() -> None:
    """Let Megatron-core's collectives work on CPU tensors, only where there is no GPU."""
    if not torch.cuda.is_available():
        torch.cuda.current_device = _cpu_device  # type: ignore[assignment]
        mappings.dist_reduce_scatter_func = _reduce_scatter


def _cpu_device() -> torch.device:
    return torch.device("cpu")


def _reduce_scatter(output: Tensor, whole: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """output [n, ...] = the sum over ranks of this rank's share of `whole` [size * n, ...]."""
    shares = torch.empty_like(whole)
    dist.all_to_all_single(shares, whole, group=group)
    torch.sum(shares.view(-1, *output.shape), 0, out=output)
