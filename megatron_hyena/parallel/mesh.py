"""The groups of ranks: tensor fastest, then context, then data.

Megatron-core makes the groups; the rest of the project receives them in a `Mesh`, never from
globals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_hyena.parallel.cpu import enable_megatron_on_cpu
from megatron_hyena.parallel.traffic import Traffic

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Mesh:
    """One rank's groups.

    Attributes:
        tensor: ranks that share each layer's channels.
        context: ranks that share one sequence.
        sequence: tensor and context ranks together, the former fastest.
        data: ranks that hold the same part of the model, and of each sequence, for other
            sequences.
        replicas: ranks that hold the same part of the model: context times data. Gradients are
            summed over them, and ZeRO shares out over them.
        traffic: bytes that this rank's layers have sent.
    """

    tensor: dist.ProcessGroup
    context: dist.ProcessGroup
    sequence: dist.ProcessGroup
    data: dist.ProcessGroup
    replicas: dist.ProcessGroup
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def tensor_rank(self) -> int:
        """Place in the tensor group."""
        return dist.get_rank(self.tensor)

    @property
    def tensor_size(self) -> int:
        """Ranks in the tensor group."""
        return dist.get_world_size(self.tensor)

    @property
    def context_size(self) -> int:
        """Ranks in the context group."""
        return dist.get_world_size(self.context)

    @property
    def data_rank(self) -> int:
        """Place in the data group."""
        return dist.get_rank(self.data)

    @property
    def data_size(self) -> int:
        """Ranks in the data group."""
        return dist.get_world_size(self.data)

    @property
    def replica_rank(self) -> int:
        """Place among the replicas."""
        return dist.get_rank(self.replicas)

    @property
    def replica_size(self) -> int:
        """Number of replicas."""
        return dist.get_world_size(self.replicas)


def build_mesh(tensor: int, context: int = 1, timeout: timedelta = TIMEOUT) -> Mesh:
    """Split the default process group; its size must be a multiple of tensor x context.

    A rank that waits longer than `timeout` for others of a group fails instead of hanging.
    """
    enable_megatron_on_cpu()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        context_parallel_size=context,
        distributed_timeout_minutes=timeout.total_seconds() / 60,
    )
    return Mesh(
        tensor=parallel_state.get_tensor_model_parallel_group(),
        context=parallel_state.get_context_parallel_group(),
        sequence=parallel_state.get_tensor_and_context_parallel_group(),
        data=parallel_state.get_data_parallel_group(with_context_parallel=False),
        replicas=parallel_state.get_data_parallel_group(with_context_parallel=True),
    )


def destroy_mesh() -> None:
    """End the groups, so that another mesh can be built in this process; all ranks call it.

    Megatron-core forgets its groups but leaves them open, each with threads and connections.
    """
    dist.barrier()  # no rank is still using them
    for group in parallel_state._global_process_group_list or []:
        if isinstance(group, dist.ProcessGroup):
            dist.destroy_process_group(group)
    parallel_state.destroy_model_parallel()
