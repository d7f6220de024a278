"""Score the variants of a VCF or BCF file by a trained causal model.

    python -m tools.score_variants --from runs/mine --vcf calls.vcf.gz --reference genome.fa.gz \\
        --output scores.parquet --vcf-output scored.vcf.gz

writes a row for each ALT: the change of the sequence's log-likelihood in nats, between windows
with the same flanks, averaged over both strands, or the reason why it has none. The same command
goes on where it was stopped. `--shard I/N`, or torchrun, spreads the work: the last to finish
joins the parts. docs/variants.md defines every column.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    from megatron_hyena.variants.run import Report


def main(argv: list[str] | None = None) -> int:
    """Score one file; 0 done, 2 after a user's mistake."""
    arguments = _parser().parse_args(argv)
    from megatron_hyena.variants import ScoreOptions, score_variants

    try:
        options = ScoreOptions(
            window=arguments.window,
            strands=arguments.strands,
            batch_tokens=arguments.batch_tokens,
            max_mismatch=arguments.max_mismatch,
            dtype=arguments.dtype,
            part=arguments.part,
            without_tracks=arguments.without_tracks,
            device=arguments.device,
        )
        report = score_variants(
            arguments.source,
            arguments.vcf,
            arguments.reference,
            arguments.output,
            options,
            shard=_shard(arguments.shard),
            vcf_output=arguments.vcf_output,
            overwrite=arguments.overwrite,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(_lines(report)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.score_variants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--from", dest="source", required=True, help="run folder or checkpoint")
    parser.add_argument("--vcf", type=Path, required=True, help=".vcf, .vcf.gz or .bcf, sorted")
    parser.add_argument(
        "--reference", type=Path, required=True, help="FASTA (.gz), 2bit, or a genome store"
    )
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--vcf-output", type=Path, help="also .vcf, .vcf.gz or .bcf with scores")
    parser.add_argument("--window", type=int, default=0, help="bases (default: the run's length)")
    parser.add_argument("--strands", default="both", help="both (the mean, default) or forward")
    parser.add_argument("--batch-tokens", type=int, default=16384, help="bases of a batch")
    parser.add_argument(
        "--max-mismatch", type=float, default=0.01, help="share of REFs that may differ"
    )
    parser.add_argument("--dtype", default="float32", help="of the arithmetic: float32, float64")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--part", type=int, default=1024, help="records that are saved together")
    parser.add_argument("--shard", help="I/N: this process does the I-th of N shares")
    parser.add_argument(
        "--without-tracks", action="store_true", help="score without the tracks of the training"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier results")
    return parser


def _shard(text: str | None) -> tuple[int, int]:
    """(I, N) of `I/N`, or of torchrun's variables."""
    if text is None:
        rank, size = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
        return (int(rank) + 1, int(size)) if rank and size else (1, 1)
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise UserError(f"--shard {text!r}: give I/N, such as 1/4")
    return int(index), int(count)


def _lines(report: Report) -> list[str]:
    survey = report.survey
    lines = [
        f"REF matches in {survey.records - survey.mismatched:,} of {survey.records:,} records "
        f"({survey.match_rate:.2%}); windows of {report.window:,} bases"
    ]
    if report.output is None:
        return [*lines, f"{report.missing} parts are still missing: they are other shards'"]
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(report.statuses.items()))
    return [*lines, f"{report.output}: {counts}"]


if __name__ == "__main__":
    sys.exit(main())
