"""How long a user waits for `--dry-run` and `--help`.

    python -m benchmarks.startup [--rounds 7]

Wall and CPU seconds of whole processes, medians of interleaved rounds. The bars on wall time: 3 s
for `python -m pretrain.train configs/run/quickstart.yaml --dry-run`, 1 s for `--help` of each tool.
Written to benchmarks/results/startup.md; returns 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import table, write_result

DRY_RUN_BAR, HELP_BAR = 3.0, 1.0
ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args(argv)
    dry_run = ("pretrain.train", "configs/run/quickstart.yaml", "--dry-run")
    bars = {dry_run: DRY_RUN_BAR} | {command: HELP_BAR for command in _help_commands()}
    measured: dict[tuple[str, ...], list[tuple[float, float]]] = {command: [] for command in bars}
    for _ in range(arguments.rounds + 1):
        for command, times in measured.items():
            times.append(_seconds(command))
    rows, reached = [], True
    for command, bar in bars.items():
        wall, cpu = (
            statistics.median(column) for column in zip(*measured[command][1:], strict=True)
        )
        reached &= wall < bar
        rows.append([f"`{' '.join(command)}`", f"{wall:.2f}", f"{cpu:.2f}", f"{bar:.0f}"])
    notes = (
        f"Seconds of whole processes, medians of {arguments.rounds} interleaved rounds after one "
        "that does not count. Importing torch is nearly all of the dry run."
    )
    text = table(["python -m", "wall s", "CPU s", "bar s"], rows)
    write_result("startup", "Start-up of the commands", notes, text)
    return 0 if reached else 1


def _help_commands() -> list[tuple[str, str]]:
    folders = ("tools", "launch")
    programs = [p for folder in folders for p in sorted((ROOT / folder).glob("*.py"))]
    return [
        (f"{program.parent.name}.{program.stem}", "--help")
        for program in programs
        if "__main__" in program.read_text(encoding="utf-8")
    ]


def _seconds(command: tuple[str, ...]) -> tuple[float, float]:
    """Wall and CPU seconds of `python -m command`."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    if status != 0:
        raise RuntimeError(f"python -m {' '.join(command)} failed")
    return wall, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
