"""The tasks of the plan: all records decided on together, and what their splits share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from megatron_hyena.corpus.leakage import EXACT_BASES, LeakageReport, of_sequences, of_sketches
from megatron_hyena.corpus.options import CorpusOptions
from megatron_hyena.corpus.plan import PLAN, make_plan, read_portions, write_plan
from megatron_hyena.corpus.records import Record, read_records
from megatron_hyena.corpus.samples import Sample
from megatron_hyena.corpus.splits import Stretch
from megatron_hyena.corpus.splitting import Splitting, naive_splitting
from megatron_hyena.corpus.store_tasks import records_stem, store_path
from megatron_hyena.corpus.tasks import Progress, Stamp, Task
from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.tracks import DTYPES, FEATURES
from megatron_hyena.errors import UserError
from megatron_hyena.yaml_sections import plain_values

LEAKAGE = "leakage.json"


def plan_chain(
    root: Path, samples: Sequence[Sample], options: CorpusOptions, done: Mapping[str, Stamp]
) -> list[Task]:
    """The plan's task and that of the leakage report.

    Raises UserError where shards are to hold tracks or features that the samples lack.
    """
    track_kinds(samples, options, done)
    names = [sample.name for sample in samples]
    plan = Task(
        name="plan/plan",
        outputs=(PLAN,),
        inputs={
            "records": [done[f"records/{name}"].digest for name in names],
            "samples": names,
            "fixed": [sample.row.split for sample in samples],
            "weights": [sample.row.weight for sample in samples],
            "curation": plain_values(options.curation),
            "splits": plain_values(options.splits),
            "shards": [options.shards.piece_length, options.shards.shard_size],
        },
        work=partial(_make_plan, root, samples, options),
        size=1,
    )
    if options.leakage.method == "none":
        return [plan]
    leakage = Task(
        name="plan/leakage",
        outputs=(LEAKAGE,),
        inputs={
            "plan": plan.key,
            "stores": [done[f"store/{name}"].digest for name in names],
            "method": options.leakage.method,
        },
        work=partial(_make_leakage, root, samples, options),
        size=1,
    )
    return [plan, leakage]


def track_kinds(
    samples: Sequence[Sample],
    options: CorpusOptions,
    done: Mapping[str, Stamp],
    kind: SequenceType | None = None,
) -> dict[str, str]:
    """Of each track that shards are to hold, what its values are, a name in `DTYPES`.

    `kind`: in the shards of this type, which have labels where its samples have. Raises UserError
    where no sample has a track (or labels, where they are asked for, or some of a type alone),
    where two samples have it in different kinds, and for a kind that cannot be in shards.
    """
    found = {sample.name: done[f"store/{sample.name}"].result["tracks"] for sample in samples}
    labelled = _labelled(samples, found) if options.shards.features else set()
    kinds = {}
    for name in options.shards.tracks:
        having = {sample: tracks[name] for sample, tracks in found.items() if name in tracks}
        if not having:
            known = sorted({track for tracks in found.values() for track in tracks})
            raise UserError(
                f"shards.tracks names {name!r}, which no sample has; they have "
                f"{', '.join(known) or 'no tracks'}"
            )
        first = next(iter(having))
        for sample, dtype in having.items():
            if dtype != having[first] or dtype not in DTYPES:
                raise UserError(
                    f"the track {name!r} is {having[first]} in {first} and {dtype} in {sample}; "
                    f"it must be the same everywhere, one of {', '.join(DTYPES)}"
                )
        kinds[name] = having[first]
    return {**kinds, FEATURES: "uint8"} if kind in labelled else kinds


def _labelled(
    samples: Sequence[Sample], found: Mapping[str, Mapping[str, str]]
) -> set[SequenceType]:
    """The types whose samples have labels; raises UserError where some of a type have none."""
    having = {sample.row.type for sample in samples if FEATURES in found[sample.name]}
    if not having:
        raise UserError("shards.features is true, but no sample has an annotation; give one")
    for sample in samples:
        if sample.row.type in having and FEATURES not in found[sample.name]:
            raise UserError(
                f"shards.features is true, but the sample {sample.name} has no annotation as "
                f"others of type {sample.row.type.name.lower()} have; give it one, or leave it out"
            )
    return having


def _all_records(root: Path, samples: Sequence[Sample]) -> list[Record]:
    return [record for s in samples for record in read_records(records_stem(root, s.name))]


def _make_plan(
    root: Path, samples: Sequence[Sample], options: CorpusOptions, scratch: Path, _: Progress
) -> dict[str, Any]:
    fixed = {sample.name: sample.row.split for sample in samples}
    weights = {sample.name: sample.row.weight for sample in samples}
    plan = make_plan(_all_records(root, samples), options, fixed, weights)
    (scratch / PLAN).mkdir()
    return {"folders": write_plan(scratch / PLAN, plan, options.shards)}


def _make_leakage(
    root: Path, samples: Sequence[Sample], options: CorpusOptions, scratch: Path, _: Progress
) -> dict[str, Any]:
    stretches = tuple(
        Stretch(split, portion.name, portion.start, portion.end)
        for split, portion in read_portions(root / PLAN)
    )
    inside = {stretch.contig for stretch in stretches}
    records = [record for record in _all_records(root, samples) if record.name in inside]
    before, after = naive_splitting(records, options.splits), Splitting(stretches)
    report = _leakage(root, options, records, before, after)
    (scratch / LEAKAGE).write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    return {"table": report.table()}


def _leakage(
    root: Path,
    options: CorpusOptions,
    records: Sequence[Record],
    before: Splitting,
    after: Splitting,
) -> LeakageReport:
    method = options.leakage.method
    if method == "auto":
        large = sum(record.counts.bases for record in records) > EXACT_BASES
        sketched = options.needs_sketches and options.splits.by != "position"
        method = "sketches" if large and sketched else "sequences"
    if method == "sketches":
        return of_sketches(records, before, after)
    open_store = lru_cache(maxsize=4)(lambda name: GenomeStore.open(store_path(root, name)))

    def read(name: str, start: int, end: int) -> Bases:
        sample, _, contig = name.partition("/")
        return open_store(sample).read(contig, start, end)

    return of_sequences(records, before, after, read)
