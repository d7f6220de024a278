"""Speed and memory of forward passes over several lengths.

python examples/monitor_performance.py
python examples/monitor_performance.py --lengths 4096 16384 --width 512 --device cuda
"""

from __future__ import annotations

import argparse
import sys

import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig, HyenaPerformanceMonitor


def main(argv: list[str] | None = None) -> int:
    """Print the figures of each length, then of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--width", type=int, default=32, help="channels")
    parser.add_argument("--pattern", default="[HHHL]1", help="blocks")
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(argv)
    config = HyenaGLTConfig.from_seed(
        pattern=options.pattern,
        vocab_size=4,
        hidden_size=options.width,
        max_seq_len=max(options.lengths),
    )
    model = HyenaGLT(config).to(options.device)
    every = HyenaPerformanceMonitor()
    for length in options.lengths:
        ids = torch.randint(0, 4, (options.batch, length), device=options.device)
        alone = HyenaPerformanceMonitor()
        alone.monitor_forward_pass(model, ids)
        every.monitor_forward_pass(model, ids)
        stats = alone.stats()
        assert stats is not None
        print(f"length {length}: {stats.tokens_per_second:.0f} tokens per second")
    every.print_stats()
    return 0


if __name__ == "__main__":
    sys.exit(main())
