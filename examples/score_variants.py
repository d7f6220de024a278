"""Scores of variants by a causal model, from Python.

python examples/score_variants.py
python examples/score_variants.py --model runs/quickstart --window 1024 --variants 100
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.formats.reference import open_reference
from megatron_hyena.variants import ScoreOptions, score_variants

GENOME = Path(__file__).parent / "chlamydia" / "ct.fasta.gz"
HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


def main(argv: list[str] | None = None) -> int:
    """Print the variants that lower the likelihood most, and those that raise it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="run folder (default: a small model of random weights)")
    parser.add_argument("--window", type=int, default=200, help="bases around a variant")
    parser.add_argument("--variants", type=int, default=20, help="substitutions and deletions")
    options = parser.parse_args(argv)
    source = options.model or HyenaGLT(HyenaGLTConfig(pattern="SML", hidden_size=32))
    with TemporaryDirectory() as folder:
        vcf = made_up(Path(folder) / "calls.vcf", options.variants)
        table = Path(folder) / "scores.parquet"
        report = score_variants(source, vcf, GENOME, table, ScoreOptions(window=options.window))
        rows = pq.read_table(table).to_pylist()
    print(f"REF matches in {report.survey.match_rate:.0%} of {report.survey.records} records")
    rows.sort(key=lambda row: row["delta_ll"])
    for row in [*rows[:3], *rows[-3:]]:
        print(
            f"{row['contig']}:{row['position']} {row['ref']}>{row['alt']}  "
            f"delta_ll {row['delta_ll']:+.3f}  following {row['delta_ll_following']:+.3f} nats"
        )
    return 0


def made_up(path: Path, count: int) -> Path:
    """A VCF of substitutions, and of deletions of one base, in the genome."""
    reference, draw = open_reference(GENOME), random.Random(1)
    (contig, length), lines = next(iter(reference.lengths.items())), []
    for place in sorted(draw.sample(range(length - 2), count)):
        ref = reference.read(contig, place, place + 2).tobytes().decode().upper()
        changed = draw.choice([base for base in "ACGT" if base != ref[0]]) + ref[1]
        lines.append(
            f"{contig}\t{place + 1}\t.\t{ref}\t{draw.choice([changed, ref[0]])}\t.\t.\t.\n"
        )
    path.write_text(HEADER + "".join(lines))
    return path


if __name__ == "__main__":
    sys.exit(main())
