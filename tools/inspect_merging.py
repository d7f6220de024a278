"""Show where the merged stages of a model open chunks along a region of a genome.

    python -m tools.inspect_merging runs/mine --store corpus/genome.zarr \\
        --region chr1:10,001-12,000 --output chunks
    python -m tools.inspect_merging runs/mine --fasta genome.fa.gz --gff genes.gff3 --output chunks

writes into the folder, which appears whole:

    merging.png            genes, sequence, opening probability, chunks of every stage
    summary.json           kept fraction, chunk lengths, drop rate; kept in coding sequence, ...
    stage0.bed             a row for each chunk with bases in the region: contig, start, end,
                           stage, opening probability x 1000; chunks are whole
    stage0_probability.bw  opening probability of each base (inner stages: of each slot, at the
                           base that opened it); .bedgraph where pyBigWig is not installed

A region is contig:start-end, counted from 1, both ends included; BED and bedGraph count from 0
and leave the end out.

Decisions depend on the bases before and on where windows begin. So a contig is always cut the same
way, whatever the region: passes of the run's data.sequence_length (rounded down to a multiple of
the model's windows, at least two) begin half a pass apart, and of each but the first only the last
half counts. Every base has half a pass of context or more, or all that the contig has. Of a model
that reads both sides (model.causal=false; at least three windows) the middle half of each pass
counts, so a base has a quarter of a pass or more on either side, or all that the contig has.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from megatron_hyena.checkpoint.format import Manifest
    from megatron_hyena.corpus.region import Region, RegionAnnotation, RegionSource
    from megatron_hyena.evaluation.chunks import StagePositions
    from megatron_hyena.model.decisions import Grid, Read

SUMMARY = "summary.json"


def main(argv: list[str] | None = None) -> int:
    """Inspect one region; 0 done, 2 after a user's mistake."""
    arguments = _parser().parse_args(argv)
    try:
        lines = inspect(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.inspect_merging", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, help="run folder or checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--fasta", type=Path, help="sequences, plain or gzip")
    source.add_argument("--store", type=Path, help="genome store; its annotation and tracks count")
    parser.add_argument("--region", help="contig:start-end (default: the only contig)")
    parser.add_argument("--gff", type=Path, help="annotation, GFF3 or GenBank")
    parser.add_argument("--type", default="dna", help="of --fasta: dna, rna, protein or mixed")
    parser.add_argument("--length", type=int, help="bases of a pass (default: the run's)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier result")
    return parser


def inspect(arguments: argparse.Namespace) -> list[str]:
    """Run the model, write the folder; what to say about it.

    Raises:
        UserError: see `main`; before the model runs, unless the disk is full.
    """
    from megatron_hyena.checkpoint.dense import load_dense
    from megatron_hyena.checkpoint.format import read_manifest, resolve_checkpoint
    from megatron_hyena.corpus.region import parse_region, region_annotation
    from megatron_hyena.data.atomic import atomic_folder, check_replaceable
    from megatron_hyena.evaluation.chunks import stage_line
    from megatron_hyena.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    check_replaceable(arguments.output, marker=SUMMARY, overwrite=arguments.overwrite)
    folder = resolve_checkpoint(arguments.checkpoint)
    manifest = read_manifest(folder)
    length, tracks = _settings(arguments, folder, manifest)
    source = _source(arguments)
    region = parse_region(arguments.region, source.lengths, source.path)
    annotation = region_annotation(source, region, arguments.gff)
    read = _reader(source, region.contig, tracks)
    model, _ = load_dense(folder)
    stages, grid = _decide(model, read, source.lengths[region.contig], region, length)
    bases = read(region.start, region.end)[0].numpy().astype("uint8")
    summary: dict[str, Any] = {
        "checkpoint": str(folder),
        "step": manifest.step,
        "pattern": model.config.pattern,
        "source": str(source.path),
        "region": {"contig": region.contig, "start": region.start + 1, "end": region.end},
        "passes": {"length": grid.length, "step": grid.step},
        "stages": _summaries(stages, region, bases, annotation),
    }
    with atomic_folder(arguments.output, marker=SUMMARY, overwrite=arguments.overwrite) as partial:
        written = _write(partial, region, source, stages, bases, annotation, summary)
    return [
        *map(stage_line, summary["stages"]),
        *(f"{arguments.output / name}" for name in written),
        _hint(written),
    ]


def _settings(
    arguments: argparse.Namespace, folder: Path, manifest: Manifest
) -> tuple[int, tuple[str, ...]]:
    """Bytes of a pass, and the tracks that the model reads."""
    pattern = str(manifest.model.get("pattern", ""))
    if "(" not in pattern:
        raise UserError(
            f"{folder}: the model {pattern!r} has no merged stage; name a run whose model.pattern "
            "has ( )"
        )
    data = manifest.run.get("data", {})
    length = data.get("sequence_length") if arguments.length is None else arguments.length
    if length is None:
        raise UserError(f"{folder} does not tell the run's data.sequence_length; give --length")
    if length < 1:
        raise UserError(f"--length {length} must be 1 or more")
    return int(length), tuple(data.get("tracks", ()))


def _source(arguments: argparse.Namespace) -> RegionSource:
    from megatron_hyena.corpus.region import fasta_source, store_source
    from megatron_hyena.data.alphabet import SequenceType

    if arguments.store:
        return store_source(arguments.store)
    return fasta_source(arguments.fasta, SequenceType.named(arguments.type))


def _reader(source: RegionSource, contig: str, names: tuple[str, ...]) -> Read:
    """Bytes and tracks of a contig as tensors."""
    import torch

    from megatron_hyena.data.tracks import TYPE

    stored = [name for name in names if name != TYPE]
    if stored and source.store is None:
        raise UserError(
            f"the model reads the track {stored[0]!r}, which no FASTA file has; give --store"
        )
    tracks = {name: source.store.track(name) for name in stored} if source.store else {}
    bases = source.open(contig)

    def read(start: int, end: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        ids = torch.from_numpy(bases(start, end).astype("int64"))
        found = {n: torch.from_numpy(t.read(contig, start, end)) for n, t in tracks.items()}
        if TYPE in names:
            found[TYPE] = torch.full_like(ids, int(source.kind))
        return ids, found

    return read


def _decide(
    model: Any, read: Read, total: int, region: Region, length: int
) -> tuple[list[StagePositions], Grid]:
    """Every stage's decisions on the region and around it."""
    from megatron_hyena.config.merging import stage_shapes
    from megatron_hyena.evaluation.chunks import StagePositions
    from megatron_hyena.model.decisions import Grid, decisions_along
    from megatron_hyena.observe.progress import progress

    grid = Grid.of(total, length, model.merging_multiple, model.config.causal)
    found = decisions_along(
        model,
        read,
        grid,
        region.start,
        region.end,
        watch=lambda batches: progress(batches, description="merging", unit="batch"),
    )
    stages = [
        StagePositions(
            name=f"stage{number}",
            target=shape.keep,
            place=one.place.numpy(),
            opened=one.opened.numpy(),
            wanted=one.wanted.numpy(),
            anchor=one.anchor.numpy(),
            probability=None if one.probability is None else one.probability.numpy(),
            end=one.end,
        )
        for number, (one, shape) in enumerate(zip(found, stage_shapes(model.config), strict=True))
    ]
    return stages, grid


def _summaries(
    stages: list[StagePositions],
    region: Region,
    bases: NDArray[np.uint8],
    annotation: RegionAnnotation | None,
) -> list[dict[str, Any]]:
    from megatron_hyena.corpus.labels import Label
    from megatron_hyena.evaluation.chunks import stage_summary

    parts: dict[str, NDArray[np.bool_]] = {}
    if annotation is not None:
        coding = (annotation.flags & int(Label.CDS_PLUS | Label.CDS_MINUS)) > 0
        parts |= {"coding": coding, "non_coding": ~coding}
    if (masked := bases >= ord("a")).any():
        parts |= {"soft_masked": masked, "not_soft_masked": ~masked}
    return [stage_summary(stage, region.start, region.end, parts) for stage in stages]


def _write(
    folder: Path,
    region: Region,
    source: RegionSource,
    stages: list[StagePositions],
    bases: NDArray[np.uint8],
    annotation: RegionAnnotation | None,
    summary: dict[str, Any],
) -> list[str]:
    """Fill the folder; names of the files."""
    from megatron_hyena.formats.interval_files import write_bed, write_values
    from megatron_hyena.observe.plots.genome import Gene
    from megatron_hyena.observe.plots.merging import RegionView, plot_merging

    written = []
    for stage in stages:
        name = f"{stage.name}.bed"
        chunks = stage.overlapping(region.start, region.end)
        write_bed(folder / name, region.contig, *chunks[:2], stage.name, chunks[2])
        written.append(name)
        if stage.probability is not None:
            inside = (stage.place >= region.start) & (stage.place < region.end)
            path = write_values(
                folder / f"{stage.name}_probability",
                region.contig,
                source.lengths[region.contig],
                stage.place[inside],
                stage.probability[inside],
            )
            written.append(path.name)
    title = f"{region.contig}:{region.start + 1:,}-{region.end:,}   {summary['pattern']}"
    genes = None if annotation is None else [Gene(*gene) for gene in annotation.genes]
    view = RegionView(title, region.start, bases, stages, genes)
    plot_merging(view, folder / "merging.png")
    written += ["merging.png", SUMMARY]
    (folder / SUMMARY).write_text(json.dumps(summary | {"files": written}, indent=2) + "\n")
    return written


def _hint(written: list[str]) -> str:
    """Which kind of number file it became, and how to get the other."""
    if any(name.endswith(".bedgraph") for name in written):
        return (
            "probabilities are bedGraph, as pyBigWig is not installed; for bigWig: pip install "
            "'megatron-hyena[bigwig]'"
        )
    if any(name.endswith(".bw") for name in written):
        return "probabilities are bigWig; UCSC's bigWigToBedGraph makes bedGraph of them"
    return "this model has no router, so there are no opening probabilities"


if __name__ == "__main__":
    sys.exit(main())
