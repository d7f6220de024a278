"""The last task: the shards' indices, the report, and the manifest over everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_hyena import __version__
from megatron_hyena.corpus.labels import LEGEND
from megatron_hyena.corpus.manifest import MANIFEST, Files, Manifest, content_digest
from megatron_hyena.corpus.options import CorpusOptions
from megatron_hyena.corpus.plan import PLAN
from megatron_hyena.corpus.plan_tasks import LEAKAGE, track_kinds
from megatron_hyena.corpus.samples import Sample
from megatron_hyena.corpus.tasks import Progress, Stamp, Task
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.shard_index import INDEX_FILE, Shard, ShardIndex
from megatron_hyena.data.shard_index import Sample as Piece
from megatron_hyena.data.tracks import FEATURES
from megatron_hyena.errors import UserError
from megatron_hyena.yaml_sections import plain_values

REPORT = "report.json"


def finish_task(
    root: Path, samples: Sequence[Sample], options: CorpusOptions, done: Mapping[str, Stamp]
) -> Task:
    """The task that ends a corpus; its manifest appears last."""
    folders = list(done["plan/plan"].result["folders"])
    indices = tuple(f"shards/{folder}/{INDEX_FILE}" for folder in folders)
    return Task(
        name="finish/finish",
        outputs=(*indices, REPORT, MANIFEST),
        inputs={
            "tasks": {name: stamp.digest for name, stamp in done.items()},
            "samples": [sample.describe() for sample in samples],
            "options": plain_values(options),
            "sources": _sources(samples, done),
        },
        work=partial(_make_end, root, samples, options, done),
        size=1,
    )


def _sources(samples: Sequence[Sample], done: Mapping[str, Stamp]) -> list[dict[str, Any]]:
    return [one for sample in samples for one in done[f"store/{sample.name}"].result["sources"]]


def _make_end(
    root: Path,
    samples: Sequence[Sample],
    options: CorpusOptions,
    done: Mapping[str, Stamp],
    scratch: Path,
    _: Progress,
) -> dict[str, Any]:
    files: Files = {}
    for stamp in done.values():
        files |= stamp.files
    content = content_digest(files)
    provenance: dict[str, Any] = {
        "corpus": content,
        "tool_version": __version__,
        "options": plain_values(options),
        "samples": [sample.describe() for sample in samples],
        "sources": _sources(samples, done),
    }
    indices = _write_indices(scratch, samples, options, done, provenance)
    report = _report(root, samples, done, indices)
    (scratch / REPORT).write_text(
        json.dumps({"corpus": content, **report}, indent=1) + "\n", encoding="utf-8"
    )
    for path in sorted(path for path in scratch.rglob("*.json")):
        files[str(path.relative_to(scratch))] = (path.stat().st_size, sha256_of(path))
    described = {key: provenance[key] for key in ("options", "samples", "sources")}
    manifest = Manifest(tool_version=__version__, content=content, files=files, **described)
    manifest.write(scratch)
    return {}


def _write_indices(
    scratch: Path,
    samples: Sequence[Sample],
    options: CorpusOptions,
    done: Mapping[str, Stamp],
    provenance: dict[str, Any],
) -> dict[str, ShardIndex]:
    """The index of each folder; raises UserError for one that holds no known letter."""
    indices = {}
    for folder, told in done["plan/plan"].result["folders"].items():
        names = sorted(name for name in done if name.startswith(f"shards/{folder}/"))
        shards = tuple(_shard(done[name].result) for name in names)
        tracks = track_kinds(samples, options, done, SequenceType.named(told["type"]))
        index = ShardIndex(
            split=told["split"],
            bases=sum(piece.end - piece.start for shard in shards for piece in shard.samples),
            gap=options.splits.gap if options.splits.by == "position" else 0,
            shards=shards,
            type=told["type"],
            tracks=tracks,
            labels=LEGEND if FEATURES in tracks else {},
            weight=told["weight"],
            provenance=provenance,
        )
        if index.bases == 0:
            raise UserError(
                f"the split {told['split']} of {told['type']} holds no known letter; change the "
                "splits, or leave out samples without sequence"
            )
        index.write(scratch / "shards" / folder)
        indices[folder] = index
    return indices


def _shard(values: dict[str, Any]) -> Shard:
    return Shard(**{**values, "samples": tuple(Piece(**piece) for piece in values["samples"])})


def _report(
    root: Path,
    samples: Sequence[Sample],
    done: Mapping[str, Stamp],
    indices: Mapping[str, ShardIndex],
) -> dict[str, Any]:
    """What the corpus holds, for people and for `tools.describe_corpus`."""
    plan = json.loads((root / PLAN / "plan.json").read_text(encoding="utf-8"))
    del plan["format"], plan["format_version"], plan["folders"]
    leakage = root / LEAKAGE
    stores = {sample.name: done[f"store/{sample.name}"].result for sample in samples}
    return {
        **plan,
        "shards": {
            folder: {
                "bases": i.bases,
                "pieces": i.pieces,
                "shards": len(i.shards),
                "weight": i.weight,
            }
            for folder, i in indices.items()
        },
        "samples": {
            name: {"contigs": told["contigs"], **told["composition"]}
            for name, told in stores.items()
        },
        "leakage": json.loads(leakage.read_text()) if "plan/leakage" in done else None,
    }
