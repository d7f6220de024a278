"""Training speed of merged stages against the same blocks without merging.

    python -m benchmarks.merging_speed [--length 16384 --width 128]

Forward and backward of whole models, loss included, B = 1, on the shipped genome; equal blocks and,
within a hundredth, equal parameters (the unmerged model's MLPs are widened). The router is set to
the asked rate on the same sequence first. Written to benchmarks/results/merging_speed.md; returns 1
where merging two thirds away is less than 1.8 times as fast for `SS([SMLA]n)SS`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import clock_for, interleaved, median_ratio, table, write_result
from benchmarks.merging_quality import parameters_of, read_bases, widened

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_hyena import HyenaGLTConfig

BAR = 1.8
GENOME = Path(__file__).parents[1] / "examples" / "chlamydia" / "ct.fasta.gz"


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    from megatron_hyena import HyenaGLTConfig

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fasta", type=Path, help="sequence (default: the shipped genome)")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2, help="n of the pattern")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    fasta = arguments.fasta or GENOME
    bases = read_bases(fasta)[: arguments.length + 1]
    clock, clock_name = clock_for(1)
    rows, bars = [], []
    for blocks in ("SMLA", "SML"):
        stack = f"[{blocks}]{arguments.repeats}"
        merged = HyenaGLTConfig(
            pattern=f"SS({stack})SS",
            hidden_size=arguments.width,
            num_heads=max(1, arguments.width // 32),
            merge_ratio=2 / 3,
        )
        plain = widened(replace(merged, pattern=f"SS{stack}SS"), parameters_of(merged))
        cases = {c.pattern: step_of(c, bases) for c in (plain, merged)}
        seconds = interleaved(cases, arguments.rounds, clock)
        ratio = median_ratio(seconds[plain.pattern], seconds[merged.pattern])
        bars.append(ratio)
        for config in (plain, merged):
            rate = arguments.length / median(seconds[config.pattern])
            faster = f"{ratio:.2f}" if config is merged else "1"
            rows.append([config.pattern, f"{parameters_of(config):,}", f"{rate:,.0f}", faster])
    text = table(["pattern", "parameters", "tokens/s", "times as fast"], rows)
    notes = (
        f"{fasta.name}, L = {arguments.length:,}, width {arguments.width}, merge_ratio 2/3, B = 1, "
        f"fp32, forward and backward with loss; {clock_name}, medians of {arguments.rounds} "
        f"interleaved rounds. Bar for SS([SMLA]n)SS: {BAR}."
    )
    write_result("merging_speed", "Merged stages against unmerged blocks", notes, text)
    return int(bars[0] < BAR)


def step_of(config: HyenaGLTConfig, bases: Tensor) -> Callable[[], None]:
    """One forward and backward pass of a model at its rate."""
    import torch

    from megatron_hyena import HyenaGLT
    from megatron_hyena.layers.merging.rate import Rate
    from megatron_hyena.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    model = HyenaGLT(config).train()
    inputs, targets = bases[None, :-1], bases[None, 1:]
    weights = torch.ones(inputs.shape)
    for rate in (module for module in model.modules() if isinstance(module, Rate)):
        with torch.no_grad():
            model.hidden(inputs)
        rate.start(rate.take())

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model.weighted_losses(inputs, targets, weights).sum().backward()

    return step


if __name__ == "__main__":
    sys.exit(main())
