"""A configuration for each length by the tutorial's rule, and what it would cost to train.

python examples/sequence_lengths.py
python examples/sequence_lengths.py --lengths 1024 65536 --width 1024
"""

from __future__ import annotations

import argparse
import sys

from megatron_hyena import (
    estimate_memory_usage,
    optimize_for_sequence_length,
    recompute_for_sequence_length,
)
from megatron_hyena.config import Config
from megatron_hyena.config.sections import DataSection, ParallelSection
from megatron_hyena.model.count import cost


def main(argv: list[str] | None = None) -> int:
    """Print one line per length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 8192, 16384])
    parser.add_argument("--width", type=int, default=768, help="channels")
    parser.add_argument("--layers", type=int, default=12, help="blocks")
    options = parser.parse_args(argv)
    for length in options.lengths:
        model = optimize_for_sequence_length(
            length, hidden_size=options.width, num_layers=options.layers
        )
        recompute = recompute_for_sequence_length(length)
        run = Config(
            model=model,
            parallel=ParallelSection(recompute=recompute),
            data=DataSection(sequence_length=length),
        )
        found, formula = cost(run, replicas=1), estimate_memory_usage(model, 1, length)
        print(
            f"length {length}: filters of {model.hyena_filter_size} taps, "
            f"use_fft_conv={model.use_fft_conv}, recompute={recompute}, pattern={model.pattern}"
        )
        print(
            f"  {found.parameters:,} parameters; {found.flops_per_token / 1e6:.0f} MFLOP per byte; "
            f"{found.state_gb:.2f} GiB of weights and optimizer, {found.activations_gb:.2f} GiB of "
            f"activations (the guide's formula says {formula['standard_memory_gb']:.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
