"""Cost of preparing a genome, beside that of merely decompressing it.

    python -m benchmarks.prepare_genome 20.fa.gz [--repeats 5]

Runs, in turn and several times each: `gzip -dc FILE | wc -c`; `python -m tools.prepare_genome` on
FILE; and the same on a FASTA file of four bases, which is the start-up. Prints medians of wall
time, the ratio (prepare - start-up) / gzip, and the peak memory of the preparing process, and
appends them to benchmarks/results/prepare_genome.md. The bars: ratio ≤ 4, under 600 MB.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "prepare_genome.md"
HEADER = """# Preparing a genome against decompressing it

Written by `python -m benchmarks.prepare_genome FILE`; medians of wall seconds, page cache warm.
Ratio = (prepare - start-up) / (`gzip -dc | wc -c`), to be at most 4; peak resident memory, to be
under 600 MB.

| date | file (MB) | repeats | gzip s | prepare s | start-up s | ratio | peak MB | machine |
|---|---|--:|--:|--:|--:|--:|--:|---|
"""


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record; returns 0 where both bars are reached, else 1."""
    parser = argparse.ArgumentParser(description="Time tools.prepare_genome against gzip -dc.")
    parser.add_argument("fasta", type=Path, help="a gzip FASTA file, such as human chromosome 20")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    gunzip, whole, startup = [], [], []
    peak = 0.0
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.fa"
        tiny.write_text(">tiny\nACGT\n", encoding="ascii")
        for _ in range(arguments.repeats):
            gunzip.append(_gunzip_seconds(arguments.fasta))
            seconds, megabytes = _prepare(arguments.fasta, Path(folder))
            whole.append(seconds)
            peak = max(peak, megabytes)
            startup.append(_prepare(tiny, Path(folder))[0])
    medians = [statistics.median(times) for times in (gunzip, whole, startup)]
    ratio = (medians[1] - medians[2]) / medians[0]
    row = (
        f"| {date.today()} | {arguments.fasta.name} ({arguments.fasta.stat().st_size / 1e6:.1f}) "
        f"| {arguments.repeats} | {medians[0]:.2f} | {medians[1]:.2f} | {medians[2]:.2f} "
        f"| {ratio:.2f} | {peak:.0f} | {_machine()} |\n"
    )
    print(HEADER.splitlines()[-2], row, sep="\n", end="")
    if not RESULTS.exists():
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(HEADER, encoding="utf-8")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(row)
    return 0 if ratio <= 4 and peak < 600 else 1


def _gunzip_seconds(fasta: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(
        ["sh", "-c", 'gzip -dc "$1" | wc -c', "sh", str(fasta)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - begin


def _prepare(fasta: Path, folder: Path) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one run of the tool."""
    command = [sys.executable, "-m", "tools.prepare_genome", "--overwrite"]
    command += ["--fasta", str(fasta), "--output", str(folder)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def _machine() -> str:
    """Processor, cores this process may use, and Python's version."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{models[0] if models else platform.machine()}, {cores} cores, Python " + (
        platform.python_version()
    )


if __name__ == "__main__":
    sys.exit(main())
