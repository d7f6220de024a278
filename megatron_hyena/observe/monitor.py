"""Time and memory of forward passes, for a look at one model by hand.

A run's own figures are in `observe.metrics`; comparisons to publish are made in `benchmarks/`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from megatron_hyena.observe.profiler import peak_memory_gb

MIB_PER_GIB = 1024


@dataclass(frozen=True)
class PassStats:
    """Figures of all monitored passes together.

    Attributes:
        passes: how many.
        average_length: positions of a sequence.
        average_seconds: of a pass.
        peak_memory_mb: largest of all passes, MiB.
        memory_kind: what that is: `device peak` (torch's allocator on the GPU, from the start of
            the pass) or `process peak` (resident memory of the whole process since it began).
        tokens_per_second: all positions of all rows, over all seconds.
    """

    passes: int
    average_length: float
    average_seconds: float
    peak_memory_mb: float
    memory_kind: str
    tokens_per_second: float


class HyenaPerformanceMonitor:
    """Times forward passes without gradient, with dropout off.

    Args:
        warmup: unmeasured passes before the first measured one of each model, input shape, dtype
            and device.
    """

    def __init__(self, warmup: int = 1) -> None:
        self.warmup = warmup
        self.reset_stats()

    def reset_stats(self) -> None:
        """Forget all passes, and what is warm."""
        self.forward_times: list[float] = []
        self.memory_usage: list[float] = []
        self.sequence_lengths: list[int] = []
        self.batch_sizes: list[int] = []
        self.memory_kind = "process peak"
        self._warm: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()

    def monitor_forward_pass(self, model: nn.Module, input_tensor: Tensor, **inputs: Any) -> Any:
        """`model(input_tensor, **inputs)`, measured; every module's training mode is restored.

        Args:
            input_tensor: [B, L] or [B, L, ...], on the model's device. On a GPU, torch's peak
                memory of that device is reset.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                return self._measured(model, input_tensor, inputs)
        finally:
            for module, training in modes.items():
                module.training = training

    def _measured(self, model: nn.Module, x: Tensor, inputs: dict[str, Any]) -> Any:
        warm, kind = self._warm.setdefault(model, set()), (x.shape, x.dtype, x.device)
        for _ in range(0 if kind in warm else self.warmup):
            model(x, **inputs)
        warm.add(kind)
        if x.is_cuda:
            output, seconds, memory = _on_gpu(model, x, inputs)
            self.memory_kind = "device peak"
        else:
            began = time.perf_counter()
            output = model(x, **inputs)
            seconds = time.perf_counter() - began
            memory = peak_memory_gb() * MIB_PER_GIB
        self.forward_times.append(seconds)
        self.memory_usage.append(memory)
        self.batch_sizes.append(x.shape[0])
        self.sequence_lengths.append(x.shape[1])
        return output

    def stats(self) -> PassStats | None:
        """Of all passes since `reset_stats`; None without any."""
        passes = len(self.forward_times)
        if not passes:
            return None
        seconds = sum(self.forward_times)
        tokens = sum(b * n for b, n in zip(self.batch_sizes, self.sequence_lengths, strict=True))
        return PassStats(
            passes=passes,
            average_length=sum(self.sequence_lengths) / passes,
            average_seconds=seconds / passes,
            peak_memory_mb=max(self.memory_usage),
            memory_kind=self.memory_kind,
            tokens_per_second=tokens / seconds,
        )

    def print_stats(self) -> None:
        """Write `stats` to standard output."""
        stats = self.stats()
        lines = ["No performance data recorded"]
        if stats is not None:
            lines = [
                f"Performance of {stats.passes} forward passes",
                f"  average sequence length: {stats.average_length:.0f}",
                f"  average forward time: {stats.average_seconds:.4f} s",
                f"  {stats.memory_kind} of memory: {stats.peak_memory_mb:.1f} MiB",
                f"  throughput: {stats.tokens_per_second:.0f} tokens per second",
            ]
        sys.stdout.write("\n".join(lines) + "\n")


def _on_gpu(model: nn.Module, x: Tensor, inputs: dict[str, Any]) -> tuple[Any, float, float]:
    """Output, seconds between two events on the device's stream, peak MiB of its allocator."""
    with torch.cuda.device(x.device):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        output = model(x, **inputs)
        end.record()
        end.synchronize()
        return output, begin.elapsed_time(end) / 1000, peak_memory_gb("cuda") * MIB_PER_GIB
