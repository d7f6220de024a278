"""What a run costs: its peak memory and its tokens per second."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

GIB = 2**30


def peak_memory_gb(device_type: str = "cpu") -> float:
    """The most memory this process has held so far, in GiB.

    "cuda": the allocator's peak on the current device (`torch.cuda.max_memory_allocated`);
    anything else: the peak resident set. On Linux that is VmHWM, which unlike `ru_maxrss` does not
    start at the size of the process that launched this one.
    """
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / GIB
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


class Throughput:
    """Tokens per second, over the last interval and over all.

    The first step (allocation, compilation, first communication) is left out as soon as a second
    one has been made; until then its own speed is all that can be told. On CUDA call `step` after
    a synchronising read, such as the loss's `item()`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._steps = 0
        self._tokens = self._interval_tokens = 0
        self._start = self._interval_start = self._end = clock()

    def step(self, tokens: int) -> None:
        """Counts one finished step of `tokens` tokens (of the global batch)."""
        if self._steps == 1:
            self._tokens = self._interval_tokens = 0
            self._start = self._interval_start = self._end
        self._steps += 1
        self._tokens += tokens
        self._interval_tokens += tokens
        self._end = self._clock()

    def interval(self) -> float:
        """Tokens per second since the last call; starts the next interval. 0.0 without a step."""
        rate = _rate(self._interval_tokens, self._end - self._interval_start)
        self._interval_tokens, self._interval_start = 0, self._end
        return rate

    def overall(self) -> float:
        """Tokens per second of all steps so far; 0.0 without a step."""
        return _rate(self._tokens, self._end - self._start)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside, between two steps, does not count: evaluation, saving."""
        began = self._clock()
        try:
            yield
        finally:
            away = self._clock() - began
            self._start += away
            self._interval_start += away
            self._end += away


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
