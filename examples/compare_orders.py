"""Hyena operators of order 1, 2 and 3 side by side: what more products of streams cost.

python examples/compare_orders.py
python examples/compare_orders.py --width 768 --length 1024 --repeats 20
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from megatron_hyena import HyenaBlock, HyenaGLTConfig

ORDERS = {1: "one convolution", 2: "two stages", 3: "three stages"}


def main(argv: list[str] | None = None) -> int:
    """Print one line per order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128, help="channels")
    parser.add_argument("--length", type=int, default=512, help="positions")
    parser.add_argument("--batch", type=int, default=2, help="sequences")
    parser.add_argument("--repeats", type=int, default=5, help="passes, of which the median counts")
    options = parser.parse_args(argv)
    torch.manual_seed(0)
    x = torch.randn(options.batch, options.length, options.width)
    for order, meaning in ORDERS.items():
        config = HyenaGLTConfig.from_seed(
            d_model=options.width, order=order, max_seq_len=options.length, use_hyena=True
        )
        block = HyenaBlock(config)
        parameters = sum(p.numel() for p in block.parameters())
        shape = tuple(block(x).shape)
        milliseconds = 1000 * median_seconds(block, x, options.repeats)
        print(
            f"order {order} ({meaning}): {milliseconds:.1f} ms, {parameters:,} parameters, {shape}"
        )
    return 0


@torch.no_grad()
def median_seconds(block: torch.nn.Module, x: torch.Tensor, repeats: int) -> float:
    """Median of `repeats` forward passes, after one that is not counted."""
    block(x)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        block(x)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
