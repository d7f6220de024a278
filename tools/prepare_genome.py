"""Turn FASTA and annotation files into a genome store.

    python -m tools.prepare_genome --fasta examples/chlamydia/ct.fasta.gz \\
        --annotation examples/chlamydia/ct.gbk.gz --output corpus/

writes corpus/genome.zarr (see megatron_hyena/data/store.py for what is in it).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_hyena.data.store import GenomeStore


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns 0, or 2 after an error the user can mend."""
    arguments = _parser().parse_args(argv)
    from tqdm import tqdm

    from megatron_hyena.data.prepare import write_store
    from megatron_hyena.errors import UserError

    try:
        with tqdm(desc="bases", unit="b", unit_scale=True, disable=None) as bar:
            store = write_store(
                arguments.output / "genome.zarr",
                arguments.fasta,
                arguments.annotation,
                overwrite=arguments.overwrite,
                progress=bar.update,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _report(store)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.prepare_genome",
        description="Turn FASTA and annotation files into a genome store (Zarr v3).",
    )
    parser.add_argument(
        "--fasta", type=Path, nargs="+", required=True, help="sequences, plain, gzip or bgzip"
    )
    parser.add_argument(
        "--annotation",
        "--gff",
        type=Path,
        nargs="+",
        default=[],
        help="GenBank, GFF3 or GTF files, plain or gzip: labels per base, as tracks/features",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder; the store is OUTPUT/genome.zarr"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a store that exists")
    return parser


def _report(store: GenomeStore) -> None:
    """Print what the store holds."""
    from megatron_hyena.data.labels import has_label

    composition = store.attributes["composition"]
    known = composition["bases"] - composition["n"]
    rows = [
        ("contigs", f"{len(store.contigs):,}"),
        ("bases", f"{composition['bases']:,}"),
        ("GC of the known bases", f"{composition['gc'] / known:.2%}" if known else "none known"),
        ("N", f"{composition['n']:,} ({composition['n'] / composition['bases']:.2%})"),
        ("lower case", f"{composition['lower_case']:,}"),
    ]
    if "features" in store.tracks:
        for kind, count in store.track("features").attributes["counts"].items():
            note = "" if has_label(kind) else " (not labelled)"
            rows.append((f"features: {kind}", f"{count:,}{note}"))
    for name, value in rows:
        print(f"{name:<24} {value}")
    print(f"{'store':<24} {store.path}")


if __name__ == "__main__":
    sys.exit(main())
