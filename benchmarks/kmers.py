"""Regression on k-mers and on letters by their place: what a fine-tuned model is compared with.

Each kind of regression is tried with several k, reaches and penalties; the best on the validation
split predicts the test split. Counts are of a whole sequence or, for labels of bases, of the bases
within `reach` to both sides; by phase, three counts, of the places whose distance to the base
leaves 0, 1 or 2 when divided by three: the frame of codons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from megatron_hyena.finetune.examples import Example, TaskData

Array = npt.NDArray[Any]
Features = Callable[["TaskData", str], tuple[Array, Array]]
"""(task, split) -> fp32 [rows, features] and the labels of the rows."""
SPLITS = ("train", "valid", "test")
PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of the penalty."""
LETTERS = b"ACGT"


@dataclass(frozen=True)
class Fitted:
    """The regression that was best on the validation split.

    Attributes:
        choice: what was chosen, in words.
        score: on the validation split.
        told, labels: of the test split: probabilities [n, C] or numbers [n, k], and the truth.
    """

    choice: str
    score: float
    told: Array
    labels: Array


@dataclass(frozen=True)
class Settings:
    """What is tried.

    Attributes:
        ks: lengths of k-mers.
        reaches: of labels of bases, how far counts reach to both sides.
        every: of labels of bases, one base in so many is a row of training.
        every_test: the same of validation and test.
    """

    ks: Sequence[int] = (1, 2, 3, 4, 5, 6)
    reaches: Sequence[int] = (96, 192)
    every: int = 128
    every_test: int = 32
    penalties: Sequence[float] = field(default=PENALTIES)


def regressions(task: TaskData, settings: Settings) -> dict[str, Fitted]:
    """By its name, the best regression of each kind that the task allows."""
    found: dict[str, Fitted] = {}
    task = by_sequence(task)
    for name, choice, features in kinds(task, settings):
        fitted = fit(task, features, settings.penalties, choice)
        if name not in found or fitted.score > found[name].score:
            found[name] = fitted
    return found


def by_sequence(task: TaskData) -> TaskData:
    """A task of bases as one of sequences, where each sequence has one base with a label."""
    if task.kind != "token_classification":
        return task
    if any((e.label >= 0).sum() != 1 for split in SPLITS for e in task.split(split)):
        return task
    train, valid, test = (
        [replace(e, label=e.label[e.label >= 0][0].astype(np.int64)) for e in task.split(split)]
        for split in SPLITS
    )
    return replace(task, kind="classification", train=train, valid=valid, test=test)


def kinds(task: TaskData, settings: Settings) -> Iterator[tuple[str, str, Features]]:
    """Name, choice and features of everything that is tried."""
    if task.kind != "token_classification":
        for k in settings.ks:
            yield "k-mer regression", f"k={k}", partial(whole_counts, k=k)
        if len({len(e.bases) for split in SPLITS for e in task.split(split)}) == 1:
            yield "regression on letters by place", "", letters_by_place
        return
    for reach in settings.reaches:
        for k in settings.ks:
            for name, phases in (("k-mer regression", 1), ("k-mer regression by phase", 3)):
                near = partial(counts_near, k=k, reach=reach, settings=settings, phases=phases)
                yield name, f"k={k}, {reach} bases to both sides", near


def fit(task: TaskData, features: Features, penalties: Sequence[float], choice: str) -> Fitted:
    """Logistic, of numbers ridge, regression with the best of the penalties."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    data = {split: features(task, split) for split in SPLITS}
    scaler = StandardScaler().fit(data["train"][0])
    x = {split: scaler.transform(values) for split, (values, _) in data.items()}
    y = {split: labels for split, (_, labels) in data.items()}
    best: Fitted | None = None
    for penalty in penalties:
        if task.kind == "regression":
            ridge = Ridge(alpha=1 / penalty).fit(x["train"], y["train"])
            valid, test = (ridge.predict(x[s]).reshape(y[s].shape) for s in ("valid", "test"))
        else:
            weight = "balanced" if len(set(task.class_weights)) > 1 else None
            logistic = LogisticRegression(C=penalty, max_iter=300, class_weight=weight)
            logistic.fit(x["train"], y["train"])
            valid, test = (logistic.predict_proba(x[s]) for s in ("valid", "test"))
        score = figures(task.kind, valid, y["valid"])["valid"]
        if best is None or score > best.score:
            words = ", ".join(filter(None, (choice, f"penalty 1/{penalty:g}")))
            best = Fitted(words, score, test, y["test"])
    assert best is not None
    return best


def figures(kind: str, told: Array, labels: Array) -> dict[str, float]:
    """The metrics of a kind of task, and as `valid` the one that chooses."""
    from megatron_hyena.finetune.metrics import class_metrics, number_metrics

    if kind == "regression":
        found = number_metrics(told, labels)
        return {**found, "valid": found["spearman"]}
    found = class_metrics(told, labels)
    return {**found, "valid": found["mcc"]}


def whole_counts(task: TaskData, split: str, k: int) -> tuple[Array, Array]:
    """Counts of k-mers [rows, 4^k]."""
    examples = task.split(split)
    counts = np.zeros((len(examples), 4**k), dtype=np.float32)
    for row, example in enumerate(examples):
        codes = kmer_codes(example, k)
        counts[row] = np.bincount(codes[codes >= 0], minlength=4**k)
    return counts, np.stack([example.label for example in examples])


def letters_by_place(task: TaskData, split: str) -> tuple[Array, Array]:
    """1 where a letter stands at a place [rows, 4 length], of sequences of one length."""
    examples = task.split(split)
    bases = np.stack([example.bases for example in examples])
    ones = (bases[..., None] == np.frombuffer(LETTERS, np.uint8)).astype(np.float32)
    return ones.reshape(len(examples), -1), np.stack([example.label for example in examples])


def counts_near(
    task: TaskData, split: str, k: int, reach: int, settings: Settings, phases: int
) -> tuple[Array, Array]:
    """Counts of the k-mers that begin within `reach` of a base [rows, phases 4^k]."""
    every = settings.every if split == "train" else settings.every_test
    counts, labels = [], []
    for example in task.split(split):
        codes = kmer_codes(example, k)
        places = np.arange(0, len(example.bases), every)
        places = places[example.label[places] >= 0]
        near = np.zeros((len(places), phases * 4**k), dtype=np.float32)
        for row, place in enumerate(places.tolist()):
            begin = max(0, place - reach)
            window = codes[begin : place + reach + 1]
            phase = (np.arange(begin, begin + len(window)) - place) % phases
            known = window >= 0
            near[row] = np.bincount((window * phases + phase)[known], minlength=near.shape[1])
        counts.append(near)
        labels.append(example.label[places])
    return np.concatenate(counts), np.concatenate(labels)


def kmer_codes(example: Example, k: int) -> npt.NDArray[np.int64]:
    """The number of the k-mer that begins at each base; -1 where one of its letters is unknown."""
    table_of = np.full(256, -(4**12), dtype=np.int64)
    for value, letter in enumerate(LETTERS):
        table_of[[letter, letter + 32]] = value
    digits = table_of[example.bases]
    if len(digits) < k:
        return np.empty(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(digits, k)
    codes = windows @ (4 ** np.arange(k - 1, -1, -1))
    return np.where(codes < 0, -1, codes)
