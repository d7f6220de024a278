"""Variants per second beside the plain forward pass on as many bases.

    python -m benchmarks.variants [--pattern SMLA --width 128 --window 1024]

Single base changes and small indels of a random genome, both strands, one thread. `plain` is
`model.token_losses` on batches of the same size without reading, cutting or summing anything.
Written to benchmarks/results/variants.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import clock_for, interleaved, median_ratio, table, write_result


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    import numpy as np
    import torch

    from megatron_hyena import HyenaGLT, HyenaGLTConfig
    from megatron_hyena.formats.reference import open_reference
    from megatron_hyena.variants.reading import Record
    from megatron_hyena.variants.rows import rows_of
    from megatron_hyena.variants.scoring import Scorer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pattern", default="SMLA")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--variants", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    clock, clock_name = clock_for(1)
    config = HyenaGLTConfig(pattern=asked.pattern, hidden_size=asked.width, ffn_hidden_size=-1)
    model, draw = HyenaGLT(config).eval(), np.random.default_rng(1)
    letters = draw.choice(np.frombuffer(b"ACGT", np.uint8), 100_000).tobytes().decode()
    with tempfile.TemporaryDirectory() as folder:
        fasta = Path(folder) / "a.fa"
        fasta.write_text(f">c\n{letters}\n")
        reference = open_reference(fasta)
    places = sorted(draw.choice(90_000, asked.variants, replace=False).tolist())
    lots: dict[str, list[Record]] = {"single bases": [], "single bases and indels": []}
    for number, place in enumerate(places):
        ref = letters[place : place + 1 + (number % 8 == 7) * (number // 8 % 4)]
        other = "CA"[ref[0] == "C"] if len(ref) == 1 else ref[0]
        single = "CA"[ref[0] == "C"]
        lots["single bases"].append(Record(number, "c", place + 1, ".", ref[0], (single,)))
        mixed = Record(number, "c", place + 1, ".", ref, (other,))
        lots["single bases and indels"].append(mixed)
    length = (asked.window - 1) // 2 * 2 + 1  # of both windows of a single base
    tokens = asked.variants * 4 * (length - 1)
    begins = [letters[at : at + length].encode() for at in range(16)]
    ids = torch.tensor([list(text) for text in begins])

    @torch.no_grad()
    def plain() -> None:
        for _ in range(asked.variants * 4 // 16):
            model.token_losses(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    scorer = Scorer(model, 16 * asked.window)
    cases = {"plain": plain} | {
        name: lambda some=some: rows_of(some, reference, asked.window, scorer, True)
        for name, some in lots.items()
    }
    seconds = interleaved(cases, asked.rounds, clock)
    rows = [
        [
            name,
            f"{tokens / median(seconds[name]):,.0f}",
            "" if name == "plain" else f"{asked.variants / median(seconds[name]):,.2f}",
            f"{median_ratio(seconds[name], seconds['plain']):.2f}",
        ]
        for name in cases
    ]
    notes = (
        f"`{asked.pattern}` of width {asked.width}, windows of {asked.window}, {asked.variants} "
        f"variants on both strands, fp32; {clock_name}, medians of {asked.rounds} interleaved "
        "rounds."
    )
    header = ["", "bases of windows per second", "variants per second", "time against plain"]
    write_result("variants", "Scoring variants", notes, table(header, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
