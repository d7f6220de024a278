"""Does pretraining help? A fine-tuned model beside random weights and a k-mer logistic regression.

    python -m benchmarks.finetune configs/run/finetune_coding.yaml [section.key=value ...]
        [--seeds 0 1 2] [--k 4] [--reach 96] [--work FOLDER]

The run of the configuration, once from its weights and once from random ones, for each seed, by
`pretrain.finetune` itself; and logistic regression on the counts of k-mers: of a whole sequence,
or, for labels of bases, within `--reach` bases. All choose on the validation split and are scored
on the same test split. Written to benchmarks/results/finetune_NAME.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import table, write_result

if TYPE_CHECKING:
    from megatron_hyena.finetune.examples import Example, TaskData

Array = npt.NDArray[Any]
PENALTIES = (0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of the regression's penalty; the best on the validation split is taken."""
LETTERS = b"ACGT"


def main(argv: list[str] | None = None) -> int:
    """Train all, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--reach", type=int, default=96)
    parser.add_argument("--every", type=int, default=16, help="bases between those regressed on")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_finetune"))
    options = parser.parse_intermixed_args(argv)
    from megatron_hyena.config.finetune import METRICS, load_finetune
    from megatron_hyena.finetune.source import find_source
    from pretrain.finetune_build import read_tasks_of

    config = load_finetune(options.config, options.overrides)
    ((name, task),) = read_tasks_of(config, find_source(config.finetune.from_)).items()
    metrics = [m for m in METRICS[task.kind] if m != "loss"]
    results = {f"{options.k}-mer regression": [kmer_baseline(task, options)]}
    for label, random in (("random weights", "true"), ("pretrained", "false")):
        results[label] = [
            network(options, f"finetune.random={random}", f"run.seed={seed}", label, seed)
            for seed in options.seeds
        ]
    rows = [[label, *(shown([r[m] for r in found]) for m in metrics)]
            for label, found in results.items()]  # fmt: skip
    notes = (
        f"{task.describe()}. Test split; mean and, over {len(options.seeds)} seeds, standard "
        f"deviation. {config.train.steps} steps of {config.train.global_batch_size} sequences, "
        f"finetune.method={config.finetune.method}, from {config.finetune.from_}."
    )
    write_result(f"finetune_{name}", f"Fine-tuning: {name}", notes, table(["", *metrics], rows))
    return 0


def shown(values: list[float]) -> str:
    """Mean and deviation."""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def network(
    options: argparse.Namespace, random: str, seeded: str, label: str, seed: int
) -> dict[str, float]:
    """One run; its test metrics."""
    folder = options.work / f"{label.replace(' ', '_')}_{seed}"
    subprocess.run(
        [
            *(sys.executable, "-m", "pretrain.finetune", options.config, *options.overrides),
            *(random, seeded, f"run.output_dir={folder}"),
        ],
        check=True,
    )
    tested = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["test"]
    return {key.removeprefix("test_"): value for key, value in tested.items()}


def kmer_baseline(task: TaskData, options: argparse.Namespace) -> dict[str, float]:
    """Logistic (of numbers: ridge) regression on k-mer counts."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    from megatron_hyena.finetune.metrics import class_metrics, number_metrics

    data = {split: features(task, split, options) for split in ("train", "valid", "test")}
    scaler = StandardScaler().fit(data["train"][0])
    scaled = {split: (scaler.transform(x), y) for split, (x, y) in data.items()}
    best: tuple[float, dict[str, float]] = (-np.inf, {})
    for penalty in PENALTIES:
        if task.kind == "regression":
            ridge = Ridge(alpha=1 / penalty).fit(*scaled["train"])
            figures = {s: number_metrics(ridge.predict(x), y) for s, (x, y) in scaled.items()}
            score = figures["valid"]["spearman"]
        else:
            weight = "balanced" if len(set(task.class_weights)) > 1 else None
            fitted = LogisticRegression(C=penalty, max_iter=500, class_weight=weight)
            fitted.fit(*scaled["train"])
            figures = {s: class_metrics(fitted.predict_proba(x), y) for s, (x, y) in scaled.items()}
            score = figures["valid"]["mcc"]
        if score > best[0]:
            best = score, figures["test"]
    return best[1]


def features(task: TaskData, split: str, options: argparse.Namespace) -> tuple[Array, Array]:
    """Counts [rows, 4^k] and labels; of labels per base, every so many bases of a sequence."""
    tokens = task.kind == "token_classification"
    every = options.every if split == "train" else 4 if tokens else 1
    counts, labels = [], []
    for example in task.split(split):
        codes = kmer_codes(example, options.k)
        if not tokens:
            counts.append(np.bincount(codes[codes >= 0], minlength=4**options.k)[None])
            labels.append(example.label[None])
            continue
        places = np.arange(0, len(example.bases), every)
        places = places[example.label[places] >= 0]
        near = np.zeros((len(places), 4**options.k), dtype=np.float32)
        for row, place in enumerate(places):
            window = codes[max(0, place - options.reach) : place + options.reach + 1]
            near[row] = np.bincount(window[window >= 0], minlength=4**options.k)
        counts.append(near)
        labels.append(example.label[places])
    return np.concatenate(counts).astype(np.float32), np.concatenate(labels)


def kmer_codes(example: Example, k: int) -> npt.NDArray[np.int64]:
    """The number of the k-mer that begins at each base; -1 where one of its letters is unknown."""
    table_of = np.full(256, -(4**12), dtype=np.int64)
    for value, letter in enumerate(LETTERS):
        table_of[[letter, letter + 32]] = value
    digits = table_of[example.bases]
    if len(digits) < k:
        return np.empty(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(digits, k)
    codes = windows @ (4 ** np.arange(k - 1, -1, -1))
    return np.where(codes < 0, -1, codes)


if __name__ == "__main__":
    sys.exit(main())
