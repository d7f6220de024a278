"""How closely a learned router keeps the asked rate over a training on real DNA.

    python -m benchmarks.merging_rate --fasta genome.fa.gz [--steps 2000 --seeds 5]

Small models with one merged stage, S(L)S, train on random windows of the bases at four merge
ratios. Over all steps after the warm-up of the learning rate: the removed fraction (bar: the asked
ratio +-0.03 in every run), the largest distance from the ratio of a mean over 50 steps, the share
of wanted openings that found no slot (bar: 1 %), and the standard deviation of the fraction from
step to step. With `--adaptive` the windows' complexity redistributes the chunks. Written to
benchmarks/results/merging_rate.md; returns 1 where a bar is missed or a loss is not finite.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import table, write_result
from benchmarks.merging_quality import read_bases

if TYPE_CHECKING:
    from torch import Tensor

RATIOS = (0.25, 0.5, 2 / 3, 5 / 6)
LR, WARM_UP = 2e-3, 100
STRETCH = 50
"""Steps of the short means whose largest distance from the ratio is reported."""
RATE_BAR, DROP_BAR = 0.03, 0.01
Run = list[dict[str, float]]
"""Figures of each step of one training."""


def main(argv: list[str] | None = None) -> int:
    """Train all, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ratio", type=float, nargs="*", default=RATIOS)
    parser.add_argument("--adaptive", action="store_true")
    parser.add_argument("--rows", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="bases of a sequence")
    parser.add_argument("--width", type=int, default=32, help="of the model")
    arguments = parser.parse_args(argv)
    bases, rows, missed = read_bases(arguments.fasta), [], False
    for ratio in arguments.ratio:
        runs = []
        for seed in range(arguments.seeds):
            runs.append(train(bases, ratio, seed, arguments))
            print(f"seed {seed}: removed {_removed(runs[-1]):.3f} of {ratio:.3f}", flush=True)
        rows.append(_row(ratio, runs))
        print("|", " | ".join(rows[-1]), "|", flush=True)
        missed |= _misses(ratio, runs)
    header = [
        "merge_ratio",
        "removed",
        f"farthest of {STRETCH} steps",
        "sd of a step",
        "largest drop rate",
        "bits per base",
    ]
    kind = ", adaptive" if arguments.adaptive else ""
    notes = (
        f"{arguments.fasta.name}, {arguments.seeds} seeds, {arguments.steps} steps of "
        f"{arguments.rows} x {arguments.length} bases, S(L)S of width {arguments.width}{kind}; "
        f"means over the steps after the first {WARM_UP}. Removed: the smallest and the largest "
        f"of the seeds. Farthest: the largest distance from the ratio of a mean over {STRETCH} "
        f"steps that follow each other. Bits per base: training loss of the last 100 steps. Bars: "
        f"every run removes its ratio +-{RATE_BAR}, drops less than {100 * DROP_BAR:.0f} %, and "
        f"every loss is finite: {'missed' if missed else 'held'}."
    )
    name = "merging_rate_adaptive" if arguments.adaptive else "merging_rate"
    write_result(name, "The rate of merging over a training", notes, table(header, rows))
    return int(missed)


def _removed(run: Run) -> float:
    return 1 - statistics.mean(step["kept"] for step in run)


def _farthest(ratio: float, run: Run) -> float:
    """The largest distance from the ratio of a mean over `STRETCH` consecutive steps."""
    starts = range(max(1, len(run) - STRETCH + 1))
    return max(abs(_removed(run[at : at + STRETCH]) - ratio) for at in starts)


def _row(ratio: float, runs: list[Run]) -> list[str]:
    removed = [_removed(run) for run in runs]
    dropped = [statistics.mean(step["dropped"] for step in run) for run in runs]
    spread = [statistics.pstdev([step["kept"] for step in run]) for run in runs]
    losses = [statistics.mean(step["loss"] for step in run[-100:]) for run in runs]
    return [
        f"{ratio:.3f}",
        f"{min(removed):.3f} to {max(removed):.3f}",
        f"{max(_farthest(ratio, run) for run in runs):.3f}",
        f"{statistics.mean(spread):.3f}",
        f"{100 * max(dropped):.2f} %",
        f"{statistics.mean(losses) / math.log(2):.3f}",
    ]


def _misses(ratio: float, runs: list[Run]) -> bool:
    dropped = [statistics.mean(step["dropped"] for step in run) for run in runs]
    finite = all(math.isfinite(step["loss"]) for run in runs for step in run)
    off = any(abs(_removed(run) - ratio) > RATE_BAR for run in runs)
    return off or max(dropped) > DROP_BAR or not finite


def train(bases: Tensor, ratio: float, seed: int, sizes: argparse.Namespace) -> Run:
    """The figures of each step after the warm-up."""
    import torch

    from megatron_hyena import HyenaGLT, HyenaGLTConfig
    from megatron_hyena.config.sections import OptimSection
    from megatron_hyena.engine.groups import parameter_groups
    from megatron_hyena.layers.merging.rate import Rate

    torch.set_num_threads(1)
    config = HyenaGLTConfig(
        pattern="S(L)S",
        hidden_size=sizes.width,
        num_heads=2,
        merge_ratio=ratio,
        adaptive=sizes.adaptive,
    )
    model = HyenaGLT(config, seed=seed).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimSection()), betas=(0.9, 0.95))
    (rate,) = [module for module in model.modules() if isinstance(module, Rate)]
    generator = torch.Generator().manual_seed(seed)
    rows, length = sizes.rows, sizes.length
    weights = torch.ones(rows, length)
    figures = []
    for step in range(sizes.steps):
        starts = torch.randint(0, len(bases) - length - 1, (rows,), generator=generator).tolist()
        windows = torch.stack([bases[at : at + length + 1] for at in starts])
        inputs, targets = windows[:, :-1], windows[:, 1:]
        if step == 0:
            with torch.no_grad():
                model.hidden(inputs)
            rate.start(rate.take())
        for group in optimizer.param_groups:
            group["lr"] = LR * group["lr_factor"] * min(1.0, (step + 1) / WARM_UP)
        optimizer.zero_grad()
        loss, penalty = model.weighted_losses(inputs, targets, weights) / weights.sum()
        (loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        figures.append(rate.update(rate.take()) | {"loss": loss.item()})
    return figures[WARM_UP:]


if __name__ == "__main__":
    sys.exit(main())
