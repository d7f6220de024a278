"""The tasks of the shards: one tar file each, from its line of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from megatron_hyena.corpus.curation import CurationRules, replace_ambiguous
from megatron_hyena.corpus.options import CorpusOptions
from megatron_hyena.corpus.pieces import shard_name
from megatron_hyena.corpus.plan import PLAN, read_pieces_of
from megatron_hyena.corpus.plan_tasks import track_kinds
from megatron_hyena.corpus.samples import Sample
from megatron_hyena.corpus.shard_writer import Layers, write_shard
from megatron_hyena.corpus.store_tasks import store_path
from megatron_hyena.corpus.tasks import Progress, Stamp, Task
from megatron_hyena.data.alphabet import Bases, SequenceType
from megatron_hyena.data.store import GenomeStore


def shard_tasks(
    root: Path, samples: Sequence[Sample], options: CorpusOptions, done: Mapping[str, Stamp]
) -> list[Task]:
    """A task for each tar file of the plan, folder by folder."""
    shards, tasks = options.shards, []
    for folder, told in done["plan/plan"].result["folders"].items():
        kinds = track_kinds(samples, options, done, SequenceType.named(told["type"]))
        for number, file in enumerate(told["files"]):
            output = f"shards/{folder}/{shard_name(number, compress=shards.compress)}"
            made_of = {
                "pieces": file["sha256"],
                "split": told["split"],
                "stores": [done[f"store/{name}"].digest for name in file["samples"]],
                "shards": [shards.piece_length, shards.compress, kinds],
                "iupac": options.curation.iupac,
            }
            place = (folder, told["split"], number)
            work = partial(_make_shard, root, place, options, kinds, output)
            tasks.append(Task(output.partition(".tar")[0], (output,), made_of, work, file["bases"]))
    return tasks


def _make_shard(
    root: Path,
    place: tuple[str, str, int],
    options: CorpusOptions,
    kinds: Mapping[str, str],
    output: str,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    folder, split, number = place
    pieces = read_pieces_of(root / PLAN, folder, split, number, options.shards.piece_length)
    layers = Layers(kinds, partial(_curated, options.curation))
    store_of = lru_cache(maxsize=4)(lambda name: GenomeStore.open(store_path(root, name)))
    return write_shard(scratch / output, split, pieces, store_of, layers, progress).as_dict()


def _curated(rules: CurationRules, bases: Bases, kind: SequenceType) -> Bases:
    return replace_ambiguous(bases, rules, kind)
