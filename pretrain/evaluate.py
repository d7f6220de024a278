"""Score a run's checkpoint on held-out sequence, beside Markov models of the same training data.

    python -m pretrain.evaluate runs/quickstart
    python -m pretrain.evaluate runs/quickstart --test other/shards/test --store corpus/genome.zarr

Prints one table and writes `evaluation.json` and `plots/*.png` in the run folder. Runs on one
process, whatever layout the model was trained in.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from megatron_hyena.data.shard_reader import Run
    from megatron_hyena.evaluation.report import EvaluationReport

    Bits = NDArray[np.float64]


def main(argv: list[str] | None = None) -> int:
    """Evaluate one run; 0 done, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="pretrain.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--test", help="folder of shards to score (default: the run's data.test)")
    parser.add_argument("--train", help="fit Markov models on these (default: data.train)")
    parser.add_argument("--valid", help="choose their smoothing on these (default: data.valid)")
    parser.add_argument("--store", type=Path, help="genome store, to draw its genes")
    parser.add_argument("--length", type=int, help="window (default: the run's sequence length)")
    parser.add_argument("--context", type=int, help="least context of a base (default: half of it)")
    parser.add_argument("--max-order", type=int, default=8, help="highest Markov order")
    arguments = parser.parse_args(argv)
    try:
        report = evaluate(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from megatron_hyena.evaluation.report import format_report

    print(format_report(report))
    return 0


def evaluate(arguments: argparse.Namespace) -> EvaluationReport:
    """Score the model and the baselines, write the report and the plots."""
    from megatron_hyena.checkpoint.dense import load_dense
    from megatron_hyena.checkpoint.format import check_causal, read_manifest, resolve_checkpoint
    from megatron_hyena.config.merging import stage_shapes
    from megatron_hyena.data.batch import Case
    from megatron_hyena.data.shard_cache import ShardCache
    from megatron_hyena.data.shard_reader import open_runs
    from megatron_hyena.data.sources import ShardSource
    from megatron_hyena.data.windows import SequentialWindows
    from megatron_hyena.evaluation.markov import markov_table
    from megatron_hyena.evaluation.report import EvaluationReport, write_report
    from megatron_hyena.evaluation.scoring import mean_bits, score_runs
    from megatron_hyena.observe.progress import progress
    from megatron_hyena.runtime.allocator import keep_freed_memory

    found = resolve_checkpoint(arguments.run)
    check_causal(read_manifest(found).model, found, "bits per base given the bases before it")
    keep_freed_memory()
    model, checkpoint = load_dense(arguments.run)
    config = read_manifest(checkpoint).run
    settings = config["data"]
    cache = ShardCache(settings.get("cache_dir"), settings.get("cache_gigabytes", 0.0))
    source = {
        name: ShardSource(_split(name, arguments, config), cache)
        for name in ("train", "valid", "test")
    }
    length = arguments.length or config["data"]["sequence_length"]
    windows = SequentialWindows(
        source["test"],
        length,
        arguments.context or max(1, length // 2),
        tracks=config["data"].get("tracks", ()),
    )
    opened = {name: open_runs(path) for name, path in source.items()}
    _check_nucleic(source, opened)
    bits = score_runs(
        model.token_losses,
        windows,
        batch_size=max(1, 16384 // length),
        watch=lambda batches: progress(list(batches), description="scoring", unit="batch"),
        case=Case(fold=config["data"].get("upper_case", False)),
    )
    value, count = mean_bits(bits)
    runs = {name: [run.read(0, run.length) for run in found] for name, found in opened.items()}
    table = markov_table(runs["train"], runs["valid"], runs["test"], arguments.max_order)
    name = f"Hyena-GLT, step {int(checkpoint.name.rpartition('_')[2])}"
    report = EvaluationReport(name, value, count, tuple(table))
    write_report(report, arguments.run / "evaluation.json")
    kept = [shape.keep for shape in stage_shapes(model.config)]
    _draw(arguments, report, bits, windows, runs, kept)
    return report


def _split(name: str, arguments: argparse.Namespace, config: dict[str, Any]) -> str:
    path = getattr(arguments, name) or config["data"][name]
    if not path:
        raise UserError(f"the run has no data.{name}; give --{name} with a folder of shards")
    return str(path)


def _check_nucleic(source: Mapping[str, str], opened: dict[str, list[Run]]) -> None:
    """Refuse what has no Markov baseline: they are of four letters."""
    for name, runs in opened.items():
        strange = [run for run in runs if not run.type.is_nucleic]
        if strange:
            raise UserError(
                f"{strange[0].folder} holds {strange[0].type.name.lower()} sequence, and Markov "
                f"models are of DNA and RNA alone; name a folder of these with --{name} (now "
                f"{source[name]})"
            )


def _draw(
    arguments: argparse.Namespace,
    report: EvaluationReport,
    bits: list[Bits],
    windows: Any,
    runs: dict[str, list[Any]],
    kept_targets: list[float],
) -> None:
    from megatron_hyena.evaluation.markov import fit_markov
    from megatron_hyena.observe.plots import plot_evaluation, plot_position, plot_training

    plots = arguments.run / "plots"
    best = report.best_markov
    if (arguments.run / "metrics.jsonl").is_file():
        plot_training(
            arguments.run / "metrics.jsonl",
            plots / "training.png",
            best.bits_per_base,
            kept_targets,
        )
    plot_evaluation(report, plots / "evaluation.png")
    longest = max(range(len(bits)), key=lambda i: len(bits[i]))
    markov = fit_markov(
        runs["train"], runs["valid"], best.order, best.both_strands, best.smoothing
    ).log2_probabilities(runs["test"][longest])
    run = windows.runs[longest]
    genes = _genes(arguments.store, run) if arguments.store else []
    plot_position(bits[longest], -markov, plots / "position.png", start=run.start, genes=genes)


def _genes(store: Path, run: Any) -> list[tuple[int, int, int]]:
    """(start, end, strand) of stretches of coding sequence under a run."""
    from megatron_hyena.corpus.labels import coding_stretches
    from megatron_hyena.data.store import GenomeStore

    genome = GenomeStore.open(store)
    if "features" not in genome.tracks:
        return []
    labels = genome.track("features").read(run.contig, run.start, run.start + run.length)
    return coding_stretches(labels, run.start)


if __name__ == "__main__":
    sys.exit(main())
