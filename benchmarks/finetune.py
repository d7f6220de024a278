"""Does pretraining help? A fine-tuned model beside random weights and k-mer regression.

    python -m benchmarks.finetune benchmarks/finetune/splice.yaml [section.key=value ...]
        [--seeds 0 1 2] [--folds N] [--k 1 2 3 4 5 6] [--work FOLDER]

The run of the configuration, once from its weights and once from random ones, for each seed, by
`pretrain.finetune` itself, with the same settings; and the regressions of `benchmarks.kmers`. All
choose on the validation split and are scored on the same test split. `{seed}` and `{fold}` in
`task.table` are replaced; the predictions of all folds are scored together. Written to
benchmarks/results/finetune_NAME.md, and the figures alone to FOLDER/NAME/figures.json, which
`python -m benchmarks.finetune_summary` reads. Runs that are done are not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.kmers import Array, Settings, figures, regressions
from benchmarks.measure import table, write_result

if TYPE_CHECKING:
    from megatron_hyena.config.finetune import FinetuneConfig
    from megatron_hyena.finetune.examples import TaskData

PRELOADED = ["pretrain.finetune_run", "pretrain.finetune_build", "megatron_hyena.engine.engine",
             "megatron_hyena.parallel.provider"]  # fmt: skip
"""Imported once, not in each run."""
PRETRAINED, RANDOM = "pretrained", "random weights"
Figures = dict[str, list[dict[str, float]]]
"""By what was trained, the test metrics of each seed."""


def main(argv: list[str] | None = None) -> int:
    """Train all, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--work", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--note", default="", help="a sentence for the record")
    options = parser.parse_intermixed_args(argv)
    from megatron_hyena.config.finetune import METRICS, load_finetune

    config = load_finetune(options.config, options.overrides)
    name = config.task.name
    results, chosen = regression_figures(config, options)
    for label, random in ((RANDOM, "true"), (PRETRAINED, "false")):
        results[label] = [
            networks(config, options, [f"finetune.random={random}"], label, seed)
            for seed in options.seeds
        ]
    metrics = [metric for metric in METRICS[config.task.kind] if metric != "loss"]
    record = {"task": name, "metric": metrics[0], "figures": results}
    folder = options.work / name
    (folder / "figures.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    notes = " ".join(filter(None, (described(config, options), *chosen, options.note)))
    write_result(f"finetune_{name}", f"Fine-tuning: {name}", notes, shown(results, metrics))
    return 0


def placed(config: FinetuneConfig, seed: int, fold: int) -> list[str]:
    """What of the configuration is another for this seed and fold."""
    given = config.task.table
    return [f"task.table={given.format(seed=seed, fold=fold)}"] if given else []


def task_of(options: argparse.Namespace, overrides: Sequence[str]) -> TaskData:
    """The one task of the configuration."""
    from megatron_hyena.config.finetune import load_finetune
    from megatron_hyena.finetune.source import find_source
    from pretrain.finetune_build import read_tasks_of

    config = load_finetune(options.config, [*options.overrides, *overrides])
    (task,) = read_tasks_of(config, find_source(config.finetune.from_)).values()
    return task


def regression_figures(
    config: FinetuneConfig, options: argparse.Namespace
) -> tuple[Figures, list[str]]:
    """Metrics of the regressions, of each seed if the table is another; and what they chose."""
    seeds = options.seeds if "{seed}" in config.task.table else options.seeds[:1]
    results: Figures = {}
    chosen: dict[str, list[str]] = {}
    for seed in seeds:
        parts: dict[str, list[tuple[Array, Array]]] = {}
        for fold in range(options.folds):
            task = task_of(options, placed(config, seed, fold))
            for name, fitted in regressions(task, Settings(ks=options.k)).items():
                parts.setdefault(name, []).append((fitted.told, fitted.labels))
                chosen.setdefault(name, []).append(fitted.choice)
        for name, found in parts.items():
            told, labels = (np.concatenate(values) for values in zip(*found, strict=True))
            results.setdefault(name, []).append(figures(config.task.kind, told, labels))
    words = [f"The {n} took {c[0]}." for n, c in chosen.items() if len(c) == 1]
    return results, words


def networks(
    config: FinetuneConfig, options: argparse.Namespace, which: list[str], label: str, seed: int
) -> dict[str, float]:
    """A run for each fold; the test metrics of all folds together."""
    folder = options.work / config.task.name
    parts = []
    for fold in range(options.folds):
        run = folder / f"{label.replace(' ', '_')}_{seed}_{fold}"
        own = [*placed(config, seed, fold), *which, f"run.seed={seed}", f"run.output_dir={run}"]
        finetune([options.config, *options.overrides, *own])
        parts.append(run)
    if options.folds == 1:
        tested = json.loads((parts[0] / "summary.json").read_text(encoding="utf-8"))["test"]
        return {key.removeprefix("test_"): value for key, value in tested.items()}
    told, labels = zip(*(predictions(run) for run in parts), strict=True)
    return figures(config.task.kind, np.concatenate(told), np.concatenate(labels))


def finetune(arguments: list[str]) -> None:
    """`pretrain.finetune` in a process of its own, forked where all is imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_finetune, args=(arguments,))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _finetune(arguments: list[str]) -> None:
    from pretrain.finetune import main as program

    sys.exit(program(arguments))


def predictions(run: Path) -> tuple[Array, Array]:
    """Probabilities [n, C] and classes [n] that a run of classes wrote for its test split."""
    with (run / "test_predictions.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    classes = [name.removeprefix("p_") for name in rows[0] if name.startswith("p_")]
    told = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    return told, np.array([classes.index(row["label"]) for row in rows])


def described(config: FinetuneConfig, options: argparse.Namespace) -> str:
    """What was trained how."""
    train, tune = config.train, config.finetune
    task = task_of(options, placed(config, options.seeds[0], 0))
    folds = f", {options.folds} folds tested together" if options.folds > 1 else ""
    return (
        f"{task.describe()}{folds}. Test split; mean and, over {len(options.seeds)} seeds, "
        f"standard deviation. At most {train.steps} steps of {train.global_batch_size} "
        f"sequences, stopped after {tune.patience} validations ({train.valid_every} steps apart) "
        f"without a better one, finetune.method={tune.method}, optim.lr={config.optim.lr:g}, the "
        f"same for both; from {tune.from_}."
    )


def shown(results: Mapping[str, list[dict[str, float]]], metrics: Sequence[str]) -> str:
    """A row for each, and the difference that pretraining makes, seed by seed."""
    rows = [
        [label, *(spread([r[m] for r in found]) for m in metrics)]
        for label, found in results.items()
    ]
    pairs = list(zip(results[PRETRAINED], results[RANDOM], strict=True))
    gains = [spread([p[m] - r[m] for p, r in pairs], "+") for m in metrics]
    return table(["", *metrics], [*rows, ["pretrained - random", *gains]])


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and deviation."""
    mean = f"{statistics.mean(values):{sign}.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    sys.exit(main())
