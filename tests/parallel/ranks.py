"""Run a function on several gloo ranks of this machine, and fail rather than hang.

Ranks meet through a file, so no port is needed and test runs cannot collide. A rank that raises,
dies, leaves without a result or is not done in time makes the call raise `RankError`; the other
ranks are then killed.

Ranks are forked from one server that has imported the libraries, which takes longer than most of
what they compute; the server has a single thread and has computed nothing. They share its hash
seed: that ranks agree without is seen in tests/smoke, where each is a program of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

IMPORTED = ["pytest", "deepspeed", "megatron_hyena.engine.engine", "megatron_hyena.parallel.mesh"]
"""By the server, before it forks the first rank."""


class RankError(AssertionError):
    """A rank raised, died or hung; the message says which and why."""


def run_ranks(
    function: Callable[..., Any], size: int, folder: Path, *args: Any, timeout: float = 120
) -> list[Any]:
    """Call `function(*args)` on `size` ranks; returns each rank's result, in order.

    Args:
        function: defined at the top of a module; finds the default process group initialised.
        folder: empty folder for the ranks' meeting point and results.
        timeout: seconds after which the ranks are killed and the call fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    ranks: list[BaseProcess] = [
        context.Process(target=_run, args=(function, rank, size, folder, timeout, args))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        _await_all(ranks, folder, time.monotonic() + timeout, timeout)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [torch.load(_result(folder, rank), weights_only=False) for rank in range(size)]


def _await_all(ranks: list[BaseProcess], folder: Path, deadline: float, timeout: float) -> None:
    running = dict(enumerate(ranks))
    failures: list[str] = []
    while running:
        wait([p.sentinel for p in running.values()], timeout=max(0.0, deadline - time.monotonic()))
        for rank in [r for r, p in running.items() if not p.is_alive()]:
            status = running.pop(rank).exitcode
            if status != 0 or not _result(folder, rank).exists():
                error = _error(folder, rank)
                reason = error.read_text() if error.exists() else f"died with exit status {status}"
                failures.append(f"rank {rank} of {len(ranks)}: {reason}")
                # The others fail in turn, or wait for ever: a moment shows who was first to blame.
                deadline = min(deadline, time.monotonic() + 2)
        if running and time.monotonic() >= deadline:
            break
    if failures:
        raise RankError("\n".join(failures))
    if running:
        raise RankError(f"ranks {sorted(running)} were not done after {timeout} s")


def _run(
    function: Callable[..., Any], rank: int, size: int, folder: Path, timeout: float, args: Any
) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    for name, value in zip(names, (rank, rank, size, size), strict=True):
        os.environ[name] = str(value)
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(folder / "store"), size)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
        )
        torch.save(function(*args), _result(folder, rank))
        dist.barrier()  # a rank that has left would look dead to those still at work
        dist.destroy_process_group()
    except BaseException:
        _error(folder, rank).write_text(traceback.format_exc())
        os._exit(1)


def _result(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.pt"


def _error(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.error"
