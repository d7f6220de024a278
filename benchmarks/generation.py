"""Writing base by base: time of a base early and late, and beside the published implementations.

    python -m benchmarks.generation [--width 128 --bases 2000]

Steps of the model alone, random weights, no sampling. Bases one hundred and twenty thousand are
timed in turns. The peers run their own cached decoding of the same weights, converted, and must
first give the same logits and likeliest bases as ours. Written to benchmarks/results/generation.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.measure import clock_for, interleaved, median_ratio, table, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.peer_decoding import Peer
    from megatron_hyena import Decoder, HyenaGLT

CONSTANT = ("[SML]2", "[SMLW]2", "SS([SML]2)SS", "[SMLA]2")
"""Patterns timed early and late; without A, held to `DRIFT` and a state of one size."""
EARLY, LATE = 100, 20_000
DRIFT, FASTER = 1.10, 3.0
"""Most that a late base may take of an early one; least ratio to the peers."""
PROMPT, CHECKED, PARTS = 128, 64, 8
"""Beside the peers: bases before all, bases that are compared, parts that take turns."""
ROWS = 8
"""Rows that are written side by side."""
STEPS = 256
"""Bases that are timed at a time: two windows of a merged stage."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record; 1 where a bar is missed."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--bases", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    clock, clock_name = clock_for(1)
    passed, early_late = constant(arguments, clock)
    faster, beside = peers(arguments, clock)
    notes = (
        f"Width {arguments.width}, fp32, one row; {clock_name}. Early and late: medians of "
        f"{arguments.rounds} rounds of {STEPS} bases in turns. Peers: the same weights, converted; "
        f"the same logits and likeliest bases over {CHECKED}, then {arguments.bases:,} bases in "
        f"{PARTS} parts in turns, medians."
    )
    write_result("generation", "Writing base by base", notes, f"{early_late}\n{beside}")
    return 0 if passed and faster else 1


def model_of(pattern: str, width: int) -> HyenaGLT:
    """Random weights."""
    from megatron_hyena import HyenaGLT, HyenaGLTConfig
    from megatron_hyena.generation.column_first import column_first

    config = HyenaGLTConfig(pattern=pattern, hidden_size=width, num_heads=width // 32)
    model = HyenaGLT(config)
    if model.stages:
        model.calibrate_merging(dna(8192)[None])  # so that stages open as many chunks as asked
    return column_first(model.eval())


def dna(length: int) -> Tensor:
    """Random bases, ids [length]."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.tensor(list(b"ACGT"))[torch.randint(4, (length,), generator=generator)]


def behind(model: HyenaGLT, length: int, rows: int = 1) -> Decoder:
    """A decoder behind a random prompt, the same in all rows."""
    from megatron_hyena import Decoder

    return Decoder.read(model, [dna(length)] * rows, room=1)


def steps(decoder: Decoder | Peer, count: int, rows: int = 1) -> Callable[[], None]:
    """`count` random bases more."""
    bases = [base.expand(rows) for base in dna(count).split(1)]

    def run() -> None:
        for base in bases:
            decoder.step(base)

    return run


def constant(arguments: argparse.Namespace, clock: Callable[[], float]) -> tuple[bool, str]:
    """Bases early and late, and eight rows at a time."""
    rows, passed = [], True
    for pattern in CONSTANT:
        model = model_of(pattern, arguments.width)
        early, late, many = behind(model, EARLY), behind(model, LATE), behind(model, EARLY, ROWS)
        first, last = early.memory_bytes, late.memory_bytes
        cases = {"early": steps(early, STEPS), "late": steps(late, STEPS)}
        seconds = interleaved(cases | {"many": steps(many, STEPS, ROWS)}, arguments.rounds, clock)
        ratio = median_ratio(seconds["late"], seconds["early"])
        same = first == last == late.memory_bytes
        passed = passed and ("A" in pattern or (same and ratio <= DRIFT))
        times = [f"{median(found) / STEPS * 1e6:,.0f}" for found in seconds.values()]
        sizes = [f"{size / 1024:,.0f}" for size in (first, last)]
        rows.append([pattern, *times[:2], f"{ratio:.2f}", *sizes, times[2]])
    places = f"{EARLY:,}", f"{LATE:,}"
    header = ["pattern", *(f"base {place}, µs" for place in places), "ratio"]
    header += [*(f"state at {place}, KiB" for place in places), f"{ROWS} rows, µs per step"]
    return passed, table(header, rows)


def peers(arguments: argparse.Namespace, clock: Callable[[], float]) -> tuple[bool, str]:
    """Ours beside each peer."""
    from benchmarks import peer_decoding

    rows, passed, here = [], True, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, model, ours in peer_decoding.pairs(arguments.width, Path(folder)):
                theirs, decoder = peer_decoding.Peer(model, dna(PROMPT)), behind(ours, PROMPT)
                peer_decoding.check_same(theirs, decoder, CHECKED)
                part = arguments.bases // PARTS
                cases = {"theirs": steps(theirs, part), "ours": steps(decoder, part)}
                times = interleaved(cases, PARTS, clock)
                ratio = median_ratio(times["theirs"], times["ours"])
                passed = passed and ratio >= FASTER
                cells = [f"{median(found) / part * 1e6:,.0f}" for found in times.values()]
                rows.append([name, ours.config.pattern, *cells, f"{ratio:.1f}"])
        finally:
            os.chdir(here)
    return passed, table(["peer", "pattern", "theirs, µs per base", "ours", "ratio"], rows)


if __name__ == "__main__":
    sys.exit(main())
