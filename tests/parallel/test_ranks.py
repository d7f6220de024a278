"""The harness itself: whatever goes wrong on a rank fails the test, and nothing hangs."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
import torch
import torch.distributed as dist

from tests.parallel.ranks import IMPORTED, RankError, run_ranks

pytestmark = pytest.mark.parallel


def summed_rank(offset):
    value = torch.tensor(dist.get_rank() + offset)
    dist.all_reduce(value)
    return dist.get_rank(), value.item()


def misbehave_on_rank_1(kind):
    if dist.get_rank() == 1:
        if kind == "raise":
            raise ArithmeticError("rank one objects")
        if kind == "leave":
            os._exit(0)
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    dist.barrier()


def seen_of_the_server():
    return (
        os.getppid(),
        len(os.listdir(f"/proc/{os.getppid()}/task")),
        set(IMPORTED) - {*sys.modules},
    )


def test_ranks_are_forked_from_one_thread_that_has_imported_all(tmp_path):
    """A rank forked from a process of several threads could hang."""
    (server, threads, missing), other = run_ranks(seen_of_the_server, 2, tmp_path)
    assert (server, threads, missing) == other == (other[0], 1, set())
    assert server != os.getpid()


def test_each_rank_returns_its_own_result(tmp_path):
    assert run_ranks(summed_rank, 2, tmp_path, 10) == [(0, 21), (1, 21)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raise", "ArithmeticError: rank one objects"),
        ("leave", "rank 1 of 2: died with exit status 0"),
        ("killed", "rank 1 of 2: died with exit status -9"),
        ("hang", r"ranks \[0, 1\] were not done after 8 s"),
    ],
)
def test_a_failing_rank_fails_the_call(tmp_path, kind, message):
    started = time.monotonic()
    with pytest.raises(RankError, match=message):
        run_ranks(misbehave_on_rank_1, 2, tmp_path, kind, timeout=8 if kind == "hang" else 60)
    assert time.monotonic() - started < 30
