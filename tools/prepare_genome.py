"""Turn sequence, annotation, alignment and track files into a genome store.

    python -m tools.prepare_genome --fasta examples/chlamydia/ct.fasta.gz \\
        --annotation examples/chlamydia/ct.gbk.gz --output corpus/
    python -m tools.prepare_genome --fasta hg38.fa.gz --track conservation=phyloP.bw --output hg38/
    python -m tools.prepare_genome --fasta uniprot.fasta.gz --type protein --output proteins/
    python -m tools.prepare_genome --fasta genomes/ 'more/*.gbff.gz' --output bacteria/
    python -m tools.prepare_genome --fasta fungi.maf.gz --annotation genes.gff --output fungus/

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
                maf_reference=arguments.maf_reference,
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
        description="Turn sequence, annotation, alignment and track files into a genome store "
        "(Zarr v3). Formats are told by content; text files may be plain, gzip or bgzip.",
        epilog="Every FILE may also be a folder, which stands for the files right in it with an "
        "ending of their kind, or a glob in quotes ('genomes/*.fa.gz', ** for folders at any "
        "depth); both are sorted by name. Endings, .gz or not: sequences "
        ".fasta .fas .fa .fna .ffn .frn .faa .mpfa .cf .gb .gbk .gbff .genbank .embl .2bit .maf, "
        "annotation .gff .gff3 .gtf .bed and those of GenBank and EMBL, "
        "tracks .bw .bigwig .bedgraph .bdg .bg.",
    )
    parser.add_argument(
        "--fasta",
        "--sequence",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="sequences: FASTA, 2bit, GenBank or EMBL (these with their features), or MAF, whose "
        "reference becomes the genome and the identity of its columns tracks/conservation",
    )
    parser.add_argument(
        "--annotation",
        "--gff",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="GenBank, EMBL, GFF3, GTF or BED: labels per base, as tracks/features; BED rows with "
        "blocks (BED12) are gene, exon and CDS, of others TYPE=FILE says what they are: "
        "repeat_region=rmsk.bed",
    )
    parser.add_argument(
        "--type",
        default="dna",
        help="what all the sequences are: dna (default), rna, protein, or mixed (several, untold)",
    )
    parser.add_argument(
        "--track",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=FILE",
        help="numbers per base from bedGraph or bigWig, as tracks/NAME: conservation=phyloP.bw",
    )
    parser.add_argument(
        "--maf-reference",
        metavar="NAME",
        help="whose rows of a MAF file become the genome: what stands before the contig's name, "
        "such as hg38 of hg38.chr1; default: the first row's, up to its first dot",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder; the store is OUTPUT/genome.zarr"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a store that exists")
    return parser


def _tracks(given: list[str]) -> dict[str, str]:
    """NAME=FILE, each name once."""
    from megatron_hyena.errors import UserError

    tracks: dict[str, str] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (equals and file):
            raise UserError(f"--track {text} names no file; write NAME=FILE")
        if name in tracks:
            raise UserError(f"--track gives {name} twice; keep one")
        tracks[name] = file
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
