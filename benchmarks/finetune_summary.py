"""One table of all fine-tuning records: what pretraining gains on each task.

    python -m benchmarks.finetune_summary [runs/tasks]

Reads FOLDER/TASK/figures.json, which `benchmarks.finetune` leaves, and writes
benchmarks/results/finetune.md. Pretraining helps on a task where the metric that chooses
is larger than from random weights with every seed; returns 1 where that is fewer than three tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.finetune import PRETRAINED, RANDOM, spread
from benchmarks.measure import table, write_result

WANTED = 3
"""Tasks of four on which pretraining is to help; both genomes of the coding task are one."""
COLUMNS = ("k-mer regression", "k-mer regression by phase", "regression on letters by place",
           RANDOM, PRETRAINED)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/tasks"))
    options = parser.parse_args(argv)
    found = sorted(options.folder.glob("*/figures.json"))
    if not found:
        print(
            f"error: {options.folder}: no */figures.json; run benchmarks.finetune", file=sys.stderr
        )
        return 2
    records = [json.loads(path.read_text(encoding="utf-8")) for path in found]
    helped = helped_tasks(records)
    notes = (
        "Test split; mean and standard deviation over seeds of the metric that chooses. "
        f"With every seed pretraining helps on {', '.join(helped) or 'none'}. "
        "How each was made: its own record."
    )
    header = ["task", "metric", *COLUMNS, "pretrained - random"]
    write_result("finetune", "Fine-tuning: all tasks", notes, table(header, rows_of(records)))
    return 0 if len({name.partition("_")[0] for name in helped}) >= WANTED else 1


def values(record: dict[str, Any], label: str) -> list[float]:
    """The metric that chooses, of each seed; empty where the task has no such row."""
    return [seed[record["metric"]] for seed in record["figures"].get(label, ())]


def rows_of(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row for each task."""
    rows = []
    for record in records:
        cells = [values(record, label) for label in COLUMNS]
        figures = [spread(own) if own else "" for own in cells]
        rows.append([record["task"], record["metric"], *figures, spread(gains_of(record), "+")])
    return rows


def helped_tasks(records: Sequence[dict[str, Any]]) -> list[str]:
    """Tasks on which the pretrained are better with every seed."""
    return [record["task"] for record in records if min(gains_of(record)) > 0]


def gains_of(record: dict[str, Any]) -> list[float]:
    """Of each seed, pretrained less random."""
    pairs = zip(values(record, PRETRAINED), values(record, RANDOM), strict=True)
    return [pretrained - random for pretrained, random in pairs]


if __name__ == "__main__":
    sys.exit(main())
