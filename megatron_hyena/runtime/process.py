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

from megatron_hyena.errors import UserError
from megatron_hyena.runtime.allocator import keep_freed_memory

TIMEOUT_VARIABLE, TIMEOUT_SECONDS = "MEGATRON_HYENA_TIMEOUT", 600.0
"""How long a rank waits for the others: the environment variable, in seconds, and its default."""


@dataclass(frozen=True)
class Process:
    """This rank.

    Attributes:
        rank, world_size: place among all ranks.
        device: where its tensors live.
        timeout: how long it waits for the others.
    """

    rank: int
    world_size: int
    device: torch.device
    timeout: timedelta

    @property
    def is_main(self) -> bool:
        """The one rank that prints and writes shared files."""
        return self.rank == 0


def world_size_from_environment() -> int:
    """Number of ranks that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def collective_timeout() -> timedelta:
    """How long a rank waits for the others before it fails instead of hanging.

    Raises UserError where the environment variable is not a positive number of seconds.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "") or str(TIMEOUT_SECONDS)
    try:
        timeout = timedelta(seconds=float(text))
    except (ValueError, OverflowError):
        timeout = timedelta(0)
    if timeout <= timedelta(0):
        raise UserError(
            f"the environment variable {TIMEOUT_VARIABLE} is {text!r}; give a number of seconds "
            "above 0, or unset it"
        )
    return timeout


def hosts_store() -> bool:
    """Whether the store of this run is in this process: without torchrun, rank 0 holds it."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return os.environ.get("RANK") == "0" and not agent


def join_store(timeout: timedelta) -> dist.Store:
    """The store at which the ranks meet; waits up to `timeout` for its host, not for the ranks."""
    if "RANK" not in os.environ:
        return dist.HashStore()
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=hosts_store(),
        timeout=timeout,
        wait_for_workers=False,
    )
    # A store of torchrun outlives a restart of the ranks.
    return dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def start_process(store: dist.Store, timeout: timedelta) -> Process:
    """Choose the device and join the default process group through `store`.

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
    world_size = world_size if "RANK" in os.environ else 1
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    return Process(rank, world_size, device, timeout)


def default_threads() -> int:
    """Cores of this machine shared among its ranks."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // local_ranks)


def stop_process() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
