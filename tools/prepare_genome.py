"""Turn FASTA, annotation and track files into a genome store.

    python -m tools.prepare_genome --fasta examples/chlamydia/ct.fasta.gz \\
        --annotation examples/chlamydia/ct.gbk.gz --output corpus/
    python -m tools.prepare_genome --fasta hg38.fa.gz --track conservation=phyloP.bw --output hg38/
    python -m tools.prepare_genome --fasta uniprot.fasta.gz --type protein --output proteins/

write corpus/genome.zarr and so on (see megatron_hyena/data/store.py for what is in it).
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

    from megatron_hyena.corpus.prepare import write_store
    from megatron_hyena.data.alphabet import SequenceType
    from megatron_hyena.errors import UserError

    try:
        tracks = _tracks(arguments.track)
        with tqdm(desc="bases", unit="b", unit_scale=True, disable=None) as bar:
            store = write_store(
                arguments.output / "genome.zarr",
                arguments.fasta,
                arguments.annotation,
                kind=SequenceType.named(arguments.type),
                tracks=tracks,
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
        description="Turn FASTA, annotation and track files into a genome store (Zarr v3).",
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
        "--type",
        default="dna",
        help="what all the sequences are: dna (default), rna, protein, or mixed (several, untold)",
    )
    parser.add_argument(
        "--track",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="numbers per base from bedGraph or bigWig, as tracks/NAME: conservation=phyloP.bw",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder; the store is OUTPUT/genome.zarr"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a store that exists")
    return parser


def _tracks(given: list[str]) -> dict[str, Path]:
    """NAME=FILE, each name once."""
    from megatron_hyena.errors import UserError

    tracks: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (equals and file):
            raise UserError(f"--track {text} names no file; write NAME=FILE")
        if name in tracks:
            raise UserError(f"--track gives {name} twice; keep one")
        tracks[name] = Path(file)
    return tracks


def _report(store: GenomeStore) -> None:
    """Print what the store holds."""
    from megatron_hyena.corpus.labels import has_label

    composition, letter = store.attributes["composition"], store.type.unknown[0]
    total, unknown = composition["bases"], composition[letter.lower()]
    rows = [
        ("type", store.type.name.lower()),
        ("contigs", f"{len(store.contigs):,}"),
        ("bases" if store.type.is_nucleic else "letters", f"{total:,}"),
    ]
    if store.type.is_nucleic:
        known = total - unknown
        share = f"{composition['gc'] / known:.2%}" if known else "none known"
        rows.append(("GC of the known bases", share))
    rows += [
        (letter, f"{unknown:,} ({unknown / total:.2%})"),
        ("lower case", f"{composition['lower_case']:,}"),
    ]
    for name in (name for name in store.tracks if name != "features"):
        told = store.track(name).attributes
        share = f"{told['known']:,} ({told['known'] / total:.2%})"
        rows.append((f"track: {name}", f"{share}, {told['least']:g} to {told['greatest']:g}"))
    if "features" in store.tracks:
        for kind, count in store.track("features").attributes["counts"].items():
            note = "" if has_label(kind) else " (not labelled)"
            rows.append((f"features: {kind}", f"{count:,}{note}"))
    for name, value in rows:
        print(f"{name:<24} {value}")
    print(f"{'store':<24} {store.path}")


if __name__ == "__main__":
    sys.exit(main())
