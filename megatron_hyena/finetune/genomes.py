"""Labels per base from a genome store or shards: the track `features`, or an annotation.

The store is cut into windows, which belong to a split by their contig, or, as in the shards of
pretraining, by their place: the end of each contig is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_hyena.config.finetune import FEATURES, LabelSection, TaskSection
from megatron_hyena.corpus.labels import label_genome
from megatron_hyena.corpus.splits import SplitRule, Stretch, split_contigs
from megatron_hyena.data.alphabet import Bases, SequenceType, unknown_letters
from megatron_hyena.data.shard_reader import Run, open_runs
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.tracks import FEATURES as FEATURES_TRACK
from megatron_hyena.data.window import check_tracks
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.examples import SPLITS, Example, class_counts
from megatron_hyena.finetune.tables import check_classes
from megatron_hyena.formats.annotation import read_annotation

OTHER = "other"
"""The class of bases that no feature marks."""
Flags = Callable[[str, int, int], npt.NDArray[np.uint8]]
"""(contig, start, end) -> the flags of these bases."""


def read_genome(
    task: TaskSection, data: LabelSection
) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """Windows by split, and the names of the classes.

    Raises:
        UserError: no such store, track, annotation or contig; nothing to train on; a class that
            is absent from training.
    """
    classes = (OTHER, *task.features)
    splits = _of_shards(task, data) if task.shards else _of_store(task, data)
    source = task.shards or task.store
    if not splits["train"]:
        raise UserError(f"{source}: nothing is left for training; hold out fewer contigs")
    counts = {name: class_counts(found, len(classes)) for name, found in splits.items()}
    seen = {
        name: {c for c, count in zip(classes, found, strict=True) if count}
        for name, found in counts.items()
    }
    check_classes(source, task, classes, seen)
    return splits, classes


def _of_store(task: TaskSection, data: LabelSection) -> dict[str, list[Example]]:
    store = GenomeStore.open(task.store)
    flags = _flags(store, task)
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for stretch in _stretches(store, task, data):

        def read(start: int, end: int, contig: str = stretch.contig) -> tuple[Bases, Bases]:
            return store.read(contig, start, end), flags(contig, start, end)

        place = stretch.contig, stretch.start, stretch.end
        splits[stretch.split] += _windows(place, store.type, read, task, data)
    return splits


def _of_shards(task: TaskSection, data: LabelSection) -> dict[str, list[Example]]:
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for split in SPLITS:
        folder = Path(task.shards) / split
        if split != "train" and not folder.is_dir():
            continue
        runs = open_runs(folder)
        check_tracks(runs, (FEATURES_TRACK,), both_strands=False)
        for run in runs:

            def read(start: int, end: int, run: Run = run) -> tuple[Bases, Bases]:
                place = start - run.start, end - run.start
                return run.read(*place), run.read_track(FEATURES_TRACK, *place)

            place = run.contig, run.start, run.start + run.length
            splits[split] += _windows(place, run.type, read, task, data)
    return splits


def swapped(classes: tuple[str, ...]) -> dict[int, int]:
    """Classes that change places on the other strand.

    Raises:
        UserError: one of coding_plus and coding_minus is a class without the other.
    """
    pair = [classes.index(name) for name in ("coding_plus", "coding_minus") if name in classes]
    if len(pair) == 1:
        raise UserError(
            f"data.reverse_complement=true turns {classes[pair[0]]} into its counterpart, which "
            "is no class of the task; add it to features, or set data.reverse_complement=false"
        )
    return {pair[0]: pair[1], pair[1]: pair[0]} if pair else {}


def _flags(store: GenomeStore, task: TaskSection) -> Flags:
    """Where flags come from: the store's track, or an annotation that is read now."""
    if not task.annotation:
        if "features" not in store.tracks:
            raise UserError(
                f"{store.path} has no track features; make it anew with --annotation, or name a "
                "file in task.annotation"
            )
        return store.track("features").read
    kind, _, file = task.annotation.rpartition("=")
    contigs = {contig.name: (contig.start, contig.length) for contig in store.contigs}
    labels = label_genome(read_annotation(Path(file), kind), contigs)

    def paint(contig: str, start: int, end: int) -> npt.NDArray[np.uint8]:
        place = store.place(contig, start, end)
        return labels.paint(place.start, place.stop)

    return paint


def _stretches(store: GenomeStore, task: TaskSection, data: LabelSection) -> list[Stretch]:
    """What of each contig is of which split."""
    held = {
        **dict.fromkeys(task.valid_contigs, "valid"),
        **dict.fromkeys(task.test_contigs, "test"),
    }
    names = {contig.name for contig in store.contigs}
    unknown = [name for name in held if name not in names]
    both = {*task.valid_contigs} & {*task.test_contigs}
    if unknown or both:
        name = unknown[0] if unknown else min(both)
        problem = "is no contig of it" if unknown else "is both for validation and for testing"
        raise UserError(
            f"{store.path}: {name!r} of valid_contigs and test_contigs {problem}; its contigs are "
            f"{', '.join(sorted(names)[:8])}"
        )
    if held:
        return [
            Stretch(held.get(contig.name, "train"), contig.name, 0, contig.length)
            for contig in store.contigs
        ]
    rule = SplitRule(data.valid_fraction, data.test_fraction, gap=data.sequence_length)
    return split_contigs(store.contigs, rule)


def _windows(
    place: tuple[str, int, int],
    kind: SequenceType,
    read: Callable[[int, int], tuple[Bases, Bases]],
    task: TaskSection,
    data: LabelSection,
) -> Iterator[Example]:
    """Windows of `data.sequence_length`, the last one shorter; those of N alone are left out."""
    length, (contig, first, last) = data.sequence_length, place
    for start in range(first, last, length):
        end = min(start + length, last)
        bases, flags = read(start, end)
        if data.upper_case:
            bases = np.frombuffer(bases.tobytes().upper(), dtype=np.uint8)
        if not unknown_letters(kind, bases).all():
            labels = _class_of(flags, task.features)
            yield Example(f"{contig}:{start + 1}-{end}", bases, labels)


def _class_of(flags: npt.NDArray[np.uint8], features: tuple[str, ...]) -> npt.NDArray[np.int16]:
    """int16 [n]: 1 + the number of the first feature that marks a base, 0 where none does."""
    labels = np.zeros(len(flags), dtype=np.int16)
    for number, name in reversed([*enumerate(features, start=1)]):
        labels[(flags & FEATURES[name]) > 0] = number
    return labels
