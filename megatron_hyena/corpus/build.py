"""A corpus from its options, in four stages of tasks (`tasks.py`), each done wherever it can run.

    store    a task for each sample: stores/NAME.zarr, then records/NAME.json and .npz
    plan     one task: plan/ (`plan.py`), then leakage.json
    shards   a task for each tar file: shards/train/shard-000000.tar …
    finish   one task: the folders' index.json, report.json, and manifest.json, last

Stages follow one another; tasks of one do not know of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.corpus.finish import finish_task
from megatron_hyena.corpus.manifest import MANIFEST, Manifest
from megatron_hyena.corpus.options import CorpusOptions
from megatron_hyena.corpus.plan_tasks import plan_chain
from megatron_hyena.corpus.samples import Sample, read_samples
from megatron_hyena.corpus.shard_tasks import shard_tasks
from megatron_hyena.corpus.store_tasks import store_chain
from megatron_hyena.corpus.tasks import (
    WORK,
    Progress,
    Stamp,
    Task,
    remove_strangers,
    run_tasks,
    stamp_of,
)
from megatron_hyena.data.shard_index import INDEX_FILE
from megatron_hyena.errors import UserError
from megatron_hyena.runtime.lock import only_process_in
from megatron_hyena.yaml_sections import plain_values

STAGES = ("store", "plan", "shards", "finish")
Chains = list[list[Task]]
Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""(stage, total size) → where progress is told."""


@dataclass(frozen=True)
class Corpus:
    """What is to be made, and where."""

    root: Path
    options: CorpusOptions
    samples: tuple[Sample, ...]

    @classmethod
    def open(cls, root: Path, options: CorpusOptions, *, overwrite: bool = False) -> Corpus:
        """Look at inputs and output before anything is done.

        Raises UserError as `read_samples` does, where `root` holds something else, and where it is
        a finished corpus of other options or samples, unless `overwrite`.
        """
        corpus = cls(root, options, tuple(read_samples(options.inputs)))
        if not root.exists():
            return corpus
        if not root.is_dir() or (any(root.iterdir()) and not (root / WORK).is_dir()):
            raise UserError(
                f"{root} exists and holds no corpus in the making; choose another --output"
            )
        if (root / MANIFEST).is_file() and not overwrite:
            found = Manifest.read(root)
            asked = [sample.describe() for sample in corpus.samples]
            if (found.options, found.samples) != (plain_values(options), asked):
                raise UserError(
                    f"{root} holds a finished corpus of other options or samples; pass --overwrite "
                    "to change it, or choose another --output"
                )
        return corpus


def build(corpus: Corpus, bar: Bar, jobs: int = 1) -> Manifest:
    """Do all stages in `jobs` processes, and return the manifest; what is done is not redone.

    Raises the first UserError of a task, and one where another process works on the corpus.
    """
    with only_process_in(corpus.root / WORK, patience=5):
        for stage in STAGES:
            _run_stage(corpus, stage, (0, 1), bar, jobs)
    return Manifest.read(corpus.root)


def build_part(corpus: Corpus, stage: str, part: tuple[int, int], bar: Bar, jobs: int = 1) -> None:
    """Do the tasks i, i + n, i + 2 n … of one stage, `part` being (i, n).

    Raises UserError as `build` does, and where the stage before is not finished.
    """
    name = f"{stage}-{part[0]}-of-{part[1]}"
    with only_process_in(corpus.root / WORK / "parts" / name, patience=5):
        _run_stage(corpus, stage, part, bar, jobs)


def _run_stage(corpus: Corpus, stage: str, part: tuple[int, int], bar: Bar, jobs: int) -> None:
    before = STAGES[: STAGES.index(stage)]
    done: dict[str, Stamp] = {}
    tasks: list[Task] = []
    for earlier in before:
        chains = _chains(corpus, earlier, done)
        tasks += [task for chain in chains for task in chain]
        done |= _stamps(corpus.root, chains, earlier)
    if stage == "finish":
        remove_strangers(corpus.root, [*tasks, *_chains(corpus, stage, done)[0]])
    first, step = part
    chains = _chains(corpus, stage, done)[first::step]
    if stage != "finish" and any(stamp_of(corpus.root, t) is None for c in chains for t in c):
        _reopen(corpus.root)
    total = sum(task.size for chain in chains for task in chain)
    with bar(stage, total) as progress:
        run_tasks(corpus.root, chains, jobs, progress)


def _chains(corpus: Corpus, stage: str, done: dict[str, Stamp]) -> Chains:
    """The tasks of a stage, from the stamps of the stages before."""
    root, options, samples = corpus.root, corpus.options, corpus.samples
    if stage == "store":
        return [store_chain(root, sample, options) for sample in samples]
    if stage == "plan":
        return [plan_chain(root, samples, options, done)]
    if stage == "shards":
        return [[task] for task in shard_tasks(root, samples, options, done)]
    return [[finish_task(root, samples, options, done)]]


def _stamps(root: Path, chains: Sequence[Sequence[Task]], stage: str) -> dict[str, Stamp]:
    """Name → stamp of all tasks of a stage; raises UserError where one is not finished."""
    found = {}
    for task in (task for chain in chains for task in chain):
        stamp = stamp_of(root, task)
        if stamp is None:
            raise UserError(
                f"{root}: {task.name} is not finished, or was made of other inputs or options; run "
                f"--stage {stage} first, all its tasks, with these options"
            )
        found[task.name] = stamp
    return found


def _reopen(root: Path) -> None:
    """A corpus that changes is not finished: no manifest, and no index to train by."""
    for path in (root / MANIFEST, *root.glob(f"shards/**/{INDEX_FILE}")):
        path.unlink(missing_ok=True)
