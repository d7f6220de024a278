"""Timing things against each other fairly, and writing down what came out.

One process, one round after another, every case once in each round: what slows the machine for a
while slows all of them. A ratio is the median over rounds of that round's ratio.
"""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def interleaved(
    cases: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each case in each of `rounds`, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, run in cases.items():
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return {name: times[1:] for name, times in seconds.items()}


def clock_for(threads: int) -> tuple[Callable[[], float], str]:
    """Process CPU time for one thread, wall time for more; with its name."""
    if threads == 1:
        return time.process_time, "process CPU time, 1 thread"
    return time.perf_counter, f"wall time, {threads} threads"


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median over rounds of slower / faster."""
    return statistics.median(s / f for s, f in zip(slower, faster, strict=True))


def machine() -> str:
    """Processor, cores this process may use, versions of Python and torch."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    text = f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    return f"{text}, torch {version('torch')}"


def command_line() -> str:
    """The command that started this benchmark."""
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_result(name: str, title: str, notes: str, tables: str) -> None:
    """Print the tables and replace `benchmarks/results/<name>.md`."""
    print(tables)
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = (
        f"# {title}\n\n{notes}\n\n"
        f"{date.today()}, {machine()}, load average at the end {os.getloadavg()[0]:.1f}:\n\n"
        f"    {command_line()}\n\n{tables}"
    )
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
