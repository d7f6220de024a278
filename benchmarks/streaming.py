"""Reading a sequence in pieces beside reading it whole: time of a byte, and what is remembered.

    python -m benchmarks.streaming [--length 16384 --width 128]

Forward passes, B = 1, random bases and weights. Bytes one by one are timed at the end of the
sequence, where `A` remembers most. Written to benchmarks/results/streaming.md.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import clock_for, interleaved, table, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from megatron_hyena import HyenaGLT, Stream

PATTERNS = ("[SML]2", "[SMLA]2", "SS([SMLA]2)SS")
PIECES = (4096, 512)
SINGLE = 32
"""Bytes fed one by one."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    import torch

    from megatron_hyena import HyenaGLT, HyenaGLTConfig, Stream

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    clock, clock_name = clock_for(1)
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor(list(b"ACGT"))[torch.randint(4, (1, arguments.length), generator=generator)]
    rows = []
    for pattern in PATTERNS:
        model = HyenaGLT(HyenaGLTConfig(pattern=pattern, hidden_size=arguments.width)).eval()
        stream = Stream(model)
        stream.feed(ids)
        cases: dict[str, Callable[[], None]] = {"whole": whole_pass(model, ids)}
        cases |= {str(size): in_pieces_of(model, ids, size) for size in PIECES}
        cases["1"] = one_by_one(stream, ids)
        seconds = interleaved(cases, arguments.rounds, clock)
        bytes_of = {name: SINGLE if name == "1" else arguments.length for name in cases}
        cells = [f"{median(seconds[name]) / bytes_of[name] * 1e6:,.1f}" for name in cases]
        rows.append([pattern, *cells, f"{stream.memory_bytes / 1024:,.0f}"])
    names = ["whole", *(f"pieces of {size}" for size in PIECES), "one by one"]
    notes = (
        f"Microseconds per byte of forward passes; width {arguments.width}, "
        f"{arguments.length:,} bytes, fp32; {clock_name}, medians of {arguments.rounds} "
        f"interleaved rounds. One by one: {SINGLE} bytes behind the others."
    )
    header = ["pattern", *names, "remembered, KiB"]
    write_result("streaming", "Sequences in pieces", notes, table(header, rows))
    return 0


def whole_pass(model: HyenaGLT, ids: Tensor) -> Callable[[], None]:
    """The sequence at once."""
    import torch

    def run() -> None:
        with torch.no_grad():
            model(ids)

    return run


def in_pieces_of(model: HyenaGLT, ids: Tensor, size: int) -> Callable[[], None]:
    """The sequence in pieces."""
    from megatron_hyena.model.stream import in_pieces

    def run() -> None:
        for _ in in_pieces(model, ids, size):
            pass

    return run


def one_by_one(stream: Stream, ids: Tensor) -> Callable[[], None]:
    """More bytes behind what `stream` has read."""

    def run() -> None:
        branch = stream.fork()
        for at in range(SINGLE):
            branch.feed(ids[:, at : at + 1])

    return run


if __name__ == "__main__":
    sys.exit(main())
