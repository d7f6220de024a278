"""Hidden states of sequences, as Zarr or Parquet.

    python -m tools.embed --from runs/mine --fasta genome.fa.gz --output emb.zarr --per chunk
    python -m tools.embed --from runs/mine --store corpus/genome.zarr --bed peaks.bed \\
        --output peaks.parquet --per sequence --layer 3 --pool mean

Whole chromosomes are read in pieces with carried state, and every base has the state of the whole
pass; patterns with A, H or G need --window, passes that overlap by half. The same command goes on
where it was stopped. docs/embed.md says what lies in the output.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_hyena.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Embed one file; 0 done, 2 after a user's mistake."""
    arguments = _parser().parse_args(argv)
    from megatron_hyena.data.alphabet import SequenceType
    from megatron_hyena.embeddings import EmbedOptions, embed

    try:
        options = EmbedOptions(
            per=arguments.per,
            chunk=arguments.chunk,
            layer=arguments.layer,
            pool=arguments.pool,
            dtype=arguments.dtype,
            window=arguments.window,
            piece=arguments.piece,
            without_tracks=arguments.without_tracks,
            device=arguments.device,
        )
        report = embed(
            arguments.source,
            arguments.fasta or arguments.store,
            arguments.output,
            options,
            bed=arguments.bed,
            kind=SequenceType.named(arguments.type),
            overwrite=arguments.overwrite,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    resumed = f" ({report.resumed:,} were done before)" if report.resumed else ""
    print(
        f"{report.output}: {report.rows:,} rows of {report.width} numbers, of "
        f"{report.sequences:,} sequences{resumed}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.embed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--from", dest="source", required=True, help="run folder or checkpoint")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--fasta", type=Path, help="FASTA (.gz), 2bit, GenBank or EMBL")
    given.add_argument("--store", type=Path, help="genome store; its tracks count")
    parser.add_argument("--bed", type=Path, help="only these intervals, each read by itself")
    parser.add_argument("--type", default="dna", help="of --fasta: dna, rna, protein or mixed")
    parser.add_argument("--output", type=Path, required=True, help=".zarr or .parquet")
    parser.add_argument("--per", default="base", help="base (default), chunk or sequence")
    parser.add_argument("--chunk", type=int, default=128, help="bases of a chunk")
    parser.add_argument("--layer", default="-1", help="embedding, block.0 (or 0) …, final (-1)")
    parser.add_argument("--pool", default="mean", help="of a chunk or sequence: mean or last")
    parser.add_argument("--dtype", default="float32", help="stored: float16, float32 or float64")
    parser.add_argument("--window", type=int, default=0, help="bases of passes; 0: carried state")
    parser.add_argument("--piece", type=int, default=8192, help="bases at a time, carried state")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--without-tracks", action="store_true", help="of the training")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    return parser


if __name__ == "__main__":
    sys.exit(main())
