"""A task's data, read and found good before anything expensive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_hyena.config.finetune import LabelSection, TaskSection
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.examples import SPLITS, Example, TaskData, class_counts
from megatron_hyena.finetune.genomes import read_genome, swapped
from megatron_hyena.finetune.tables import read_table


def read_task(task: TaskSection, data: LabelSection, vocab_size: int) -> TaskData:
    """Read, split and check one task.

    Raises:
        UserError: see `read_table` and `read_genome`; a letter that a model of `vocab_size` does
            not have; equal sequences in two splits; class weights that do not fit; targets that
            do not vary, or are all unknown, or negative counts.
    """
    splits, classes = (read_table if task.table else read_genome)(task, data)
    source = task.table or task.store or task.shards
    _check_letters(source, splits, vocab_size)
    splits = _without_duplicates(source, splits, data.duplicates)
    swaps = swapped(classes) if data.reverse_complement and not task.table else {}
    train, valid, test = (splits[name] for name in SPLITS)
    found = TaskData(task.name, task.kind, classes, train, valid, test)
    if task.kind == "regression":
        mean, std = _scale(source, task, splits)
        return replace(found, mean=mean, std=std)
    weights = _class_weights(source, task, splits["train"], classes)
    return replace(found, class_weights=weights, swaps=swaps)


def _check_letters(source: str, splits: dict[str, list[Example]], vocab_size: int) -> None:
    for examples in splits.values():
        for example in examples:
            largest = int(example.bases.max())
            if largest >= vocab_size or int(example.bases.min()) < ord(" "):
                raise UserError(
                    f"{source}: {example.name} holds the byte {largest} ({chr(largest)!r}), and "
                    f"the model has the ids 0 to {vocab_size - 1} (model.vocab_size={vocab_size}); "
                    "give sequences as letters, and a model of bytes"
                )


def _without_duplicates(
    source: str, splits: dict[str, list[Example]], rule: str
) -> dict[str, list[Example]]:
    """Refuse or drop sequences that a split after this one holds too; case does not count."""
    if rule == "keep":
        return splits
    later: dict[bytes, tuple[str, str]] = {}
    kept: dict[str, list[Example]] = {}
    for split in reversed(SPLITS):
        kept[split] = []
        own: dict[bytes, tuple[str, str]] = {}
        for example in splits[split]:
            letters = example.bases.tobytes().upper()
            if letters in later and rule == "refuse":
                other, where = later[letters]
                raise UserError(
                    f"{source}: {example.name} of {split} has the bases of {other} of {where}; "
                    "set data.duplicates=drop, or keep to test on what was trained on"
                )
            if letters not in later:
                own[letters] = example.name, split
                kept[split].append(example)
        later |= own
    if not kept["train"]:
        raise UserError(f"{source}: all of training is in other splits too; mend the split column")
    return kept


def _class_weights(
    source: str, task: TaskSection, train: Sequence[Example], classes: Sequence[str]
) -> tuple[float, ...]:
    if task.class_weights == "none":
        return (1.0,) * len(classes)
    if task.class_weights == "balanced":
        counts = class_counts(train, len(classes))
        return tuple((counts.sum() / (len(classes) * counts)).tolist())
    try:
        given = tuple(float(text) for text in task.class_weights.strip("[] ").split(","))
    except ValueError:
        given = ()
    if len(given) != len(classes) or min(given) < 0 or not max(given) > 0:
        raise UserError(
            f"{source}: class_weights={task.class_weights} must be none, balanced, or "
            f"{len(classes)} numbers of 0 or more, one for each of {', '.join(classes)}"
        )
    return given


def _scale(source: str, task: TaskSection, splits: dict[str, list[Example]]) -> tuple[float, float]:
    """Mean and deviation of the training targets; 0 and 1 for counts."""
    targets = np.stack([example.label for example in splits["train"]]).astype(np.float64)
    if task.head.loss == "poisson":
        if np.nanmin(targets, initial=0.0) < 0:
            raise UserError(
                f"{source}: head.loss=poisson is of counts, and {np.nanmin(targets):g} is "
                "negative; use mse or huber"
            )
        return 0.0, 1.0
    known = targets[~np.isnan(targets)]
    if known.size == 0 or known.std() == 0:
        raise UserError(
            f"{source}: the training targets {task.label_column} do not vary; give numbers to learn"
        )
    return float(known.mean()), float(known.std())
