"""Human variants on a chromosome taken from an alignment, scored in many ways that must agree.

    python -m benchmarks.variants_chr22 --from runs/quickstart [--window 512 --sample 64]

Fetches two Debian packages (83 MB; kept in the folder named by MEGATRON_HYENA_DATA): human
chromosome 22 (GRCh37) within an alignment of apes, of which tools.prepare_genome makes a genome
store, and 10,376 variants of the 1000 Genomes. All whose REF lies in the alignment are scored, and
a drawn sample alone, in batches, with padding, in pieces of the chromosome, by two ranks and from
the other strand. Status 1 where a REF differs or a score moves by 1e-10 nats in double precision or
1e-4 in single. Written to benchmarks/results/variants_chr22.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import table, write_result

if TYPE_CHECKING:
    from tests.oracles.chr22 import Chr22
    from tests.oracles.variant_ways import Ways

BOUNDS = {"float64": 1e-10, "float32": 1e-4}
"""Nats by which a score may differ."""


def main(argv: list[str] | None = None) -> int:
    """Score, compare, print, record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", required=True, help="run folder or checkpoint")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--sample", type=int, default=64)
    asked = parser.parse_args(argv)
    import torch

    from megatron_hyena.checkpoint.source import trained_model
    from megatron_hyena.errors import UserError
    from tests.oracles.chr22 import read_chr22, sample_of
    from tests.oracles.variant_ways import Ways
    from tools.prepare_genome import main as prepare_genome

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            chromosome = read_chr22(folder / "data")
            trained = trained_model(asked.source)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        words = ["--fasta", str(chromosome.alignment), "--maf-reference", "Hsap"]
        if prepare_genome([*words, "--output", name]):
            return 2
        store = folder / "genome.zarr"
        kinds, matching = _all_scored(chromosome, store, asked, folder)
        cells: dict[str, list[str]] = {}
        worst = {}
        for dtype in BOUNDS:
            (work := folder / dtype).mkdir()
            sample = sample_of(chromosome, asked.sample, seed=1)
            ways = Ways(chromosome, store, sample, trained.model, asked.window, dtype, work)
            differences = _differences(ways)
            worst[dtype] = max(differences.values())
            for way, difference in differences.items():
                cells.setdefault(way, []).append(f"{difference:.1e}")
    notes = (
        f"{len(chromosome.records):,} of {chromosome.all_records:,} records have their REF in "
        f"blocks of the alignment ({chromosome.covered:,} bases); REF matches in {matching:,}. "
        f"Windows of {asked.window} bases, both strands, {trained.model.config.pattern} of width "
        f"{trained.model.config.hidden_size}. Below, {asked.sample} of them, half of them indels: "
        "the largest difference of any score or sum of log p, in nats, from all in one call. "
        "Padding: one model call per allele and strand, by tests/oracles."
    )
    text = table(["kind", "records", "scored", "too long"], kinds)
    text += "\n" + table(["way", *BOUNDS], [[way, *found] for way, found in cells.items()])
    write_result("variants_chr22", "Variants of human chromosome 22", notes, text)
    agree = all(worst[dtype] < bound for dtype, bound in BOUNDS.items())
    return 0 if agree and matching == len(chromosome.records) else 1


def _all_scored(
    chromosome: Chr22, store: Path, asked: argparse.Namespace, folder: Path
) -> tuple[list[list[str]], int]:
    """Rows of the table of kinds, and how many REFs match."""
    import pyarrow.parquet as parquet

    from megatron_hyena.variants import ScoreOptions, score_variants
    from tests.oracles.chr22 import kind_of

    vcf, output = chromosome.write_vcf(folder / "all.vcf"), folder / "all.parquet"
    options = ScoreOptions(window=asked.window, max_mismatch=1)
    report = score_variants(asked.source, vcf, store, output, options)
    statuses = parquet.read_table(output, columns=["record", "status"]).to_pylist()
    counts: Counter[Any] = Counter()
    for row in statuses:
        kind = kind_of(chromosome.records[row["record"] - 1])
        counts.update([kind, (kind, row["status"])])
    rows = [
        [kind, *(f"{counts[key]:,}" for key in (kind, (kind, "scored"), (kind, "too_long")))]
        for kind in sorted(key for key in counts if isinstance(key, str))
    ]
    return rows, report.survey.records - report.survey.mismatched


def _differences(ways: Ways) -> dict[str, float]:
    """Way → the largest difference from all in one call."""
    from tests.oracles.variant_ways import PADDINGS, furthest, plainly

    wanted = ways.wanted()
    found = {way: furthest(rows, wanted) for way, rows in ways.all()}
    for padding in PADDINGS:
        count, difference = plainly(ways, wanted, padding)
        found[f"padding of {padding} bases ({count} of one case)"] = difference
    return found


if __name__ == "__main__":
    sys.exit(main())
