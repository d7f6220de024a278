"""What DeepSpeed is told: its configuration from ours, and its view of the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megatron_hyena.config import Config

if TYPE_CHECKING:
    import torch.distributed as dist

    from megatron_hyena.parallel.mesh import Mesh


def deepspeed_config(config: Config, data_size: int, context_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration; a pure function of ours.

    DeepSpeed counts every replica as if it had sequences of its own, so context ranks count here.

    Parameters are fp32 in every precision (bf16 is autocast around the forward pass), so the
    poles of long filters and all optimizer state never pass through bfloat16.
    """
    train = config.train
    return {
        "train_batch_size": train.global_batch_size * context_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(config, data_size),
        "gradient_clipping": config.optim.grad_clip,
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_scatter": True,
            "stage3_param_persistence_threshold": 0,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
    }


def accumulation_steps(config: Config, data_size: int) -> int:
    """Micro-batches that each data rank computes in one optimizer step."""
    return config.train.global_batch_size // (config.train.micro_batch_size * data_size)


class MeshUnit:
    """The mesh in the words DeepSpeed asks for ("mpu"): model means tensor, data replicas."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def get_model_parallel_rank(self) -> int:
        """Place in the tensor group."""
        return self.mesh.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Ranks in the tensor group."""
        return self.mesh.tensor_size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """The tensor group."""
        return self.mesh.tensor

    def get_data_parallel_rank(self) -> int:
        """Place among the replicas."""
        return self.mesh.replica_rank

    def get_data_parallel_world_size(self) -> int:
        """Number of replicas."""
        return self.mesh.replica_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """The replicas."""
        return self.mesh.replicas
