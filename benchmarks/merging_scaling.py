"""Cost per token of attention, Hyena and merged trunks at 1K to 64K bases.

    python -m benchmarks.merging_scaling [--lengths 1024 4096 16384 65536]

The table of the seed documents, read as *cost per token relative to attention at 1K*; total cost is
that times the length. Three trunks of equal width, whole models forward and backward with loss,
B = 1, on the shipped genome: `[A]6`, `[SML]2`, and `S([SML]2)S` with two thirds merged away.
Exponents are slopes of a least-squares line through log(total cost) over log(length). Attention
beyond `--longest-attention` is not measured. Written to benchmarks/results/merging_scaling.md;
returns 1 where Hyena or merged are not below the seed's figures at every length.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from benchmarks.length_scaling import exponent
from benchmarks.measure import clock_for, interleaved, table, write_result
from benchmarks.merging_quality import read_bases
from benchmarks.merging_speed import GENOME, step_of

PATTERNS = {"attention": "[A]6", "Hyena": "[SML]2", "merged": "S([SML]2)S"}
SEED = {
    "Hyena": {1024: 0.8, 4096: 1.2, 16384: 2.1, 65536: 4.8},
    "merged": {1024: 0.6, 4096: 0.8, 16384: 1.2, 65536: 2.1},
}
"""The seed's figures; its attention is 1, 4, 16, 64."""


def main(argv: list[str] | None = None) -> int:
    """Measure, print, record."""
    from megatron_hyena import HyenaGLTConfig

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=sorted(SEED["Hyena"]))
    parser.add_argument("--longest-attention", type=int, default=16384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    bases = read_bases(GENOME)
    clock, clock_name = clock_for(1)
    seconds: dict[str, dict[int, float]] = {name: {} for name in PATTERNS}
    for length in arguments.lengths:
        cases = {
            name: step_of(
                HyenaGLTConfig(
                    pattern=pattern,
                    hidden_size=arguments.width,
                    num_heads=max(1, arguments.width // 32),
                    merge_ratio=2 / 3,
                ),
                bases[: length + 1],
            )
            for name, pattern in PATTERNS.items()
            if name != "attention" or length <= arguments.longest_attention
        }
        for name, times in interleaved(cases, arguments.rounds, clock).items():
            seconds[name][length] = median(times)
    shortest = arguments.lengths[0]
    unit = seconds["attention"][shortest] / shortest
    rows, missed = [], False
    for name, found in seconds.items():
        per_token = {length: value / length / unit for length, value in found.items()}
        rows.append([name, *(f"{per_token.get(n, 0):.2f}" for n in arguments.lengths)])
        rows[-1].append(f"{exponent(list(found), list(found.values())):.2f}")
        total = {length: value * length / shortest for length, value in per_token.items()}
        rows.append([f"{name}, total", *(f"{total.get(n, 0):.1f}" for n in arguments.lengths), ""])
        seed = SEED.get(name, {})
        missed |= any(per_token[n] >= seed[n] for n in per_token if n in seed)
    rows = [["-" if cell in ("0.00", "0.0") else cell for cell in row] for row in rows]
    text = table(["trunk", *(f"{n:,}" for n in arguments.lengths), "exponent"], rows)
    notes = (
        f"Cost per token relative to attention at {shortest:,} (the reading of the seed's table), "
        f"and total cost relative to the same. {', '.join(PATTERNS.values())}; width "
        f"{arguments.width}, B = 1, fp32, forward and backward with loss, {GENOME.name}; "
        f"{clock_name}, medians of {arguments.rounds} interleaved rounds. A dash: not measured."
    )
    write_result("merging_scaling", "Attention, Hyena and merged trunks", notes, text)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
