"""Which rank this process is, and the process group it belongs to.

The variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) say where it
stands; without them it is a run of one rank. Ranks on GPUs talk through NCCL, others through gloo.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_hyena.runtime.allocator import keep_freed_memory

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Process:
    """This rank.

    Attributes:
        rank, world_size: place among all ranks.
        device: where its tensors live.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The one rank that prints and writes shared files."""
        return self.rank == 0


def world_size_from_environment() -> int:
    """Number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_process(timeout: timedelta = TIMEOUT) -> Process:
    """Choose the device and join the default process group.

    A rank that waits longer than `timeout` for the others fails instead of hanging.
    """
    keep_freed_memory()
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, also without a launcher
    rank, world_size = int(os.environ.get("RANK", "0")), world_size_from_environment()
    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or default_threads()))
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
        )
    return Process(rank, world_size, device)


def default_threads() -> int:
    """Cores of this machine shared among its ranks."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // local_ranks)


def stop_process() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
