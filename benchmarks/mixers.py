"""Hyena mixers beside the operator of HyenaDNA, and whole blocks beside attention.

    python -m benchmarks.mixers [--length 16384] [--width 256] [--threads 1]

One layer, one sequence, fp32, forward and backward. First the mixers alone (projections, 3-tap
convolution, gates, filter) against `benchmarks.hyena_dna`; then a block with norms and MLP against
the same block with causal attention. Both sides run in one process with the same allocator
settings, taking turns. The bars: each mixer at least 1.5 times HyenaDNA, each block at least 3
times attention. Written to benchmarks/results/mixers.md; returns 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.hyena_dna import HyenaDNAOperator
from benchmarks.measure import clock_for, interleaved, median_ratio, table, write_result
from megatron_hyena import HyenaGLTConfig
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.model.hyena_glt import Block, mixer_class
from megatron_hyena.runtime.allocator import keep_freed_memory

MIXER_BAR, BLOCK_BAR = 1.5, 3.0
NAMES = {"S": "Hyena-SE", "M": "Hyena-MR", "L": "Hyena-LI", "A": "attention, 8 heads"}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=16384, help="positions")
    parser.add_argument("--width", type=int, default=256, help="channels")
    parser.add_argument("--threads", type=int, default=1, help="more than 1: wall time")
    parser.add_argument("--rounds", type=int, default=9, help="of the mixers")
    parser.add_argument("--block-rounds", type=int, default=3, help="of the blocks")
    parser.add_argument(
        "--default-allocator", action="store_true", help="do not keep freed memory, on both sides"
    )
    arguments = parser.parse_args(argv)
    if not arguments.default_allocator:
        keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    clock, clock_name = clock_for(arguments.threads)
    shape = (arguments.length, 1, arguments.width)
    config = HyenaGLTConfig(hidden_size=arguments.width, num_heads=8)

    mixers = {NAMES[s]: _step(_built(mixer_class(s), config), shape) for s in "SML"}
    rival = HyenaDNAOperator(arguments.width, arguments.length)
    mixers["HyenaDNA"] = _step(rival, (1, arguments.length, arguments.width))
    mixer_seconds = interleaved(mixers, arguments.rounds, clock)
    blocks = {NAMES[s]: _step(_block(s, config), shape) for s in "SMLA"}
    block_seconds = interleaved(blocks, arguments.block_rounds, clock)

    first, mixer_least = _report(mixer_seconds, "HyenaDNA", arguments.length, MIXER_BAR)
    second, block_least = _report(block_seconds, NAMES["A"], arguments.length, BLOCK_BAR)
    notes = (
        f"L = {arguments.length}, d = {arguments.width}, B = 1, fp32, forward and backward; "
        f"{clock_name}; medians of {arguments.rounds} (mixers) and {arguments.block_rounds} "
        f"(blocks) interleaved rounds; allocator on both sides: "
        f"{'default' if arguments.default_allocator else 'freed memory kept'}. HyenaDNA's operator "
        "is a reimplementation from its published equations (`benchmarks/hyena_dna.py`)."
    )
    name = "mixers" if arguments.threads == 1 else f"mixers_{arguments.threads}_threads"
    name += "_default_allocator" if arguments.default_allocator else ""
    tables = f"Mixers alone:\n\n{first}\nBlocks with norms and MLP:\n\n{second}"
    write_result(name, "Hyena mixers beside HyenaDNA and attention", notes, tables)
    return 0 if mixer_least >= MIXER_BAR and block_least >= BLOCK_BAR else 1


def _built(kind: Callable[..., nn.Module], *arguments: object) -> nn.Module:
    module = kind(*arguments, DenseProvider())
    initialise(module, 0, 0, 1)
    return module


def _block(sign: str, config: HyenaGLTConfig) -> nn.Module:
    return _built(Block, sign, config)


def _step(module: nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    """Forward and backward with gradients of the input and of every parameter."""
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        module(x).backward(grad)

    return step


def _report(
    seconds: dict[str, list[float]], rival: str, length: int, bar: float
) -> tuple[str, float]:
    """The table, and the smallest speed-up over `rival`."""
    ratios = {name: median_ratio(seconds[rival], times) for name, times in seconds.items()}
    rows = [
        [name, f"{length / statistics.median(times):,.0f}", f"{ratios[name]:.2f}"]
        for name, times in seconds.items()
    ]
    text = table(["layer", "tokens/s", f"times {rival} (bar {bar})"], rows)
    return text, min(ratio for name, ratio in ratios.items() if name != rival)


if __name__ == "__main__":
    sys.exit(main())
