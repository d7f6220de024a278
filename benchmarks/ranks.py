"""Gloo ranks of this machine for a benchmark: each runs one function; the results come back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from megatron_hyena.runtime.console import quiet_libraries

TIMEOUT = timedelta(minutes=30)


def on_ranks(function: Callable[..., Any], size: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on `size` ranks of one thread each; their results, in order."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_run, (function, size, folder, args), nprocs=size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _run(rank: int, function: Callable[..., Any], size: int, folder: str, args: Any) -> None:
    quiet_libraries()
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def peak_since_reset(reset: bool = False) -> int:
    """Peak resident bytes of this process since the last call with `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
