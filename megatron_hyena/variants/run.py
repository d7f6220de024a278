"""Score the variants of a file: check everything, score part by part, write Parquet and VCF."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from megatron_hyena.checkpoint.format import check_causal
from megatron_hyena.checkpoint.source import TrainedModel, check_tracks, trained_model
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.errors import UserError
from megatron_hyena.formats.parquet_parts import Parts, needed
from megatron_hyena.formats.reference import Reference, open_reference
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.observe.progress import progress
from megatron_hyena.variants.options import ScoreOptions
from megatron_hyena.variants.reading import Record, Survey, read_records, survey
from megatron_hyena.variants.rows import rows_of
from megatron_hyena.variants.scoring import Scorer
from megatron_hyena.variants.writing import check_vcf_output, write_vcf

FORMAT = "megatron-hyena variant scores"
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Report:
    """What was done.

    Attributes:
        survey: of the file.
        window: bases of the longest window.
        output: the Parquet file, or None while parts of other shards are missing.
        missing: number of parts that are.
        statuses: status → ALTs.
    """

    survey: Survey
    window: int
    output: Path | None
    missing: int
    statuses: dict[str, int]


def score_variants(
    source: str | Path | HyenaGLT,
    vcf: str | Path,
    reference: str | Path,
    output: str | Path,
    options: ScoreOptions | None = None,
    *,
    shard: tuple[int, int] = (1, 1),
    vcf_output: str | Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Write a table with a row for each ALT of `vcf`; see `docs/variants.md`.

    A second call of the same goes on where the first was stopped.

    Args:
        source: a run folder, a checkpoint, a folder of `save_pretrained`, or a causal model.
        vcf: VCF, plain or gzip, or BCF, sorted.
        reference: sequence file or genome store.
        output: Parquet file to write.
        shard: (I, N): score the I-th of N shares, counted from 1; the last to finish joins them.
        vcf_output: also write the records with their scores (`.vcf`, `.vcf.gz` or `.bcf`).
        overwrite: replace `output` and `vcf_output`.
    Raises:
        UserError: before anything is scored: see `survey`, `Parts`, `check_tracks`; a model that
            is not causal, or no window length.
    """
    options = options or ScoreOptions()
    vcf, output = Path(vcf), Path(output)
    into = None if vcf_output is None else check_vcf_output(Path(vcf_output), overwrite)
    if not 1 <= shard[0] <= shard[1]:
        raise UserError(f"--shard {shard[0]}/{shard[1]}: give I/N with I from 1 to N")
    trained = trained_model(source)
    window = _window(trained, options)
    genome = open_reference(Path(reference))
    found = survey(vcf, genome, options.max_mismatch)
    settings = _settings(trained, options, window, vcf, genome)
    parts = Parts(output, settings, -(-found.records // options.part), overwrite)
    _score(parts, trained, options, window, vcf, genome, shard)
    settings |= {"records": found.records, "ref_match_rate": found.match_rate}
    if not parts.join({"megatron_hyena": json.dumps(settings)}):
        return Report(found, window, None, len(parts.missing()), {})
    if into is not None:
        write_vcf(vcf, output, into, settings)
    statuses = needed("pyarrow.parquet").read_table(output, columns=["status"])["status"]
    return Report(found, window, output, 0, dict(Counter(statuses.to_pylist())))


def _window(trained: TrainedModel, options: ScoreOptions) -> int:
    """Bases of a window, once it is sure that the model can read it."""
    config = trained.model.config
    check_causal({"causal": config.causal}, Path(trained.name), "scoring variants")
    check_tracks(trained, options.without_tracks)
    window = options.window or trained.sequence_length
    if not window:
        raise UserError(f"{trained.name} does not tell data.sequence_length; give --window")
    longest = config.longest_sequence
    if longest is not None and window - 1 > longest:
        raise UserError(
            f"--window {window} exceeds model.max_sequence_length={longest}; give --window "
            f"{longest + 1} or less"
        )
    return window


def _settings(
    trained: TrainedModel, options: ScoreOptions, window: int, vcf: Path, genome: Reference
) -> dict[str, Any]:
    return {
        **{"format": FORMAT, "format_version": FORMAT_VERSION},
        **{"model": trained.name, "model_sha256": trained.digest},
        **{"variants": vcf.name, "variants_sha256": sha256_of(vcf)},
        **{"reference": genome.path.name, "reference_sha256": genome.digest},
        **{"window": window, "strands": options.strands, "dtype": options.dtype},
        **{"part": options.part, "without_tracks": options.without_tracks},
    }


def _score(
    parts: Parts,
    trained: TrainedModel,
    options: ScoreOptions,
    window: int,
    vcf: Path,
    genome: Reference,
    shard: tuple[int, int],
) -> None:
    """Every missing part of the shard."""
    index, count = shard
    wanted = {number for number in parts.missing() if number % count == index - 1}
    if not wanted:
        return
    typed = trained.model.config.type_embedding != "none"
    model = trained.model.to(options.device, getattr(torch, options.dtype))
    scorer = Scorer(
        model, options.batch_tokens, trained.upper_case, int(genome.kind) if typed else None
    )
    own = range(index - 1, parts.count, count)
    finished = len(own) - len(wanted)
    both = options.strands == "both"
    with progress(description="variants", total=len(own), unit="part", initial=finished) as bar:
        for number, records in _grouped(vcf, options.part):
            if number in wanted:
                table = rows_of(list(records), genome, window, scorer, both, bar.update)
                parts.write(number, [table])
                bar.n = finished = finished + 1


def _grouped(vcf: Path, size: int) -> Iterator[tuple[int, Iterator[Record]]]:
    """(number, records) of every part."""
    return groupby(read_records(vcf), key=lambda record: (record.number - 1) // size)
