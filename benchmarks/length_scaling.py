"""How the cost of one Hyena-LI layer grows with the length of the sequence.

    python -m benchmarks.length_scaling [--shortest 1024] [--longest 65536] [--width 256]

Forward and backward of one sequence, fp32, at lengths doubling from the shortest to the longest.
Time: process CPU time of one thread, medians of interleaved rounds. Memory: growth of the peak
resident size over the built and warmed-up layer, in a fresh process for each length. Exponents are
slopes of a least-squares line through log(cost) over log(length); the bars: 1.15 for time, 1.05
for memory. Written to benchmarks/results/length_scaling.md; returns 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import clock_for, interleaved, table, write_result

TIME_BAR, MEMORY_BAR = 1.15, 1.05
WARM_UP_LENGTH = 128


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shortest", type=int, default=1024, help="positions")
    parser.add_argument("--longest", type=int, default=65536, help="positions")
    parser.add_argument("--width", type=int, default=256, help="channels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak-of", type=int, help="print the peak memory of one length, in bytes")
    arguments = parser.parse_args(argv)
    if arguments.peak_of:
        print(_peak_growth(arguments.peak_of, arguments.width))
        return 0
    doublings = int(math.log2(arguments.longest / arguments.shortest))
    lengths = [arguments.shortest << i for i in range(doublings + 1)]

    step = _layer(arguments.width)
    clock, clock_name = clock_for(1)
    runs = {str(length): lambda length=length: step(length) for length in lengths}
    rounds = interleaved(runs, arguments.rounds, clock)
    seconds = [statistics.median(times) for times in rounds.values()]
    peaks = [_peak_in_fresh_process(length, arguments.width) for length in lengths]

    time_exponent, memory_exponent = exponent(lengths, seconds), exponent(lengths, peaks)
    rows = [
        [f"{n:,}", f"{1e3 * t:,.1f}", f"{n / t:,.0f}", f"{m / 2**20:,.1f}", f"{m / n / 1024:.1f}"]
        for n, t, m in zip(lengths, seconds, peaks, strict=True)
    ]
    rows.append(["exponent", f"{time_exponent:.3f}", "", f"{memory_exponent:.3f}", ""])
    rows.append(["bar", f"{TIME_BAR}", "", f"{MEMORY_BAR}", ""])
    text = table(["length", "ms", "tokens/s", "peak MiB", "KiB per position"], rows)
    notes = (
        f"One layer, d = {arguments.width}, B = 1, fp32, forward and backward. Time: {clock_name}, "
        f"medians of {arguments.rounds} interleaved rounds. Memory: growth of the peak resident "
        "size in a fresh process. Freed memory is kept, as in training."
    )
    write_result("length_scaling", "Cost of one Hyena-LI layer over the length", notes, text)
    return 0 if time_exponent <= TIME_BAR and memory_exponent <= MEMORY_BAR else 1


def exponent(lengths: list[int], costs: list[float]) -> float:
    """Least-squares slope of log(cost) over log(length)."""
    logs = [math.log(n) for n in lengths], [math.log(c) for c in costs]
    return statistics.linear_regression(*logs).slope


def _layer(width: int) -> Callable[[int], None]:
    """A function of the length that runs one layer forward and backward."""
    import torch

    from megatron_hyena import HyenaGLTConfig
    from megatron_hyena.layers.parameter import initialise
    from megatron_hyena.layers.provider import DenseProvider
    from megatron_hyena.layers.striped import HyenaLI
    from megatron_hyena.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = HyenaLI(HyenaGLTConfig(hidden_size=width), DenseProvider())
    initialise(layer, 0, 0, 1)

    def step(length: int) -> None:
        layer.zero_grad(set_to_none=True)
        x = torch.randn(length, 1, width, requires_grad=True)
        layer(x).backward(torch.ones(length, 1, width))

    return step


def _peak_growth(length: int, width: int) -> int:
    """Bytes by which one step raises the peak resident size of this warmed-up process (Linux)."""
    step = _layer(width)
    step(WARM_UP_LENGTH)
    ctypes.CDLL(None).malloc_trim(0)  # give back what the warm-up left for reuse
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _resident("VmRSS")
    step(length)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _peak_in_fresh_process(length: int, width: int) -> float:
    command = [sys.executable, "-m", "benchmarks.length_scaling"]
    command += ["--peak-of", str(length), "--width", str(width)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
