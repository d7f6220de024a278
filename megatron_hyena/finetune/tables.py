"""Labelled sequences from a table that a biologist has: sequence and label, TSV or CSV.

With a FASTA file the table names records instead of holding their bases. A row's split is told by
a column, or drawn from a hash of its letters, so that equal sequences are never in two splits.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from megatron_hyena.config.finetune import LabelSection, TaskSection
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.examples import IGNORED, SPLITS, Example, Labels
from megatron_hyena.formats.compressed import read_lines
from megatron_hyena.formats.fasta import read_pieces

UNLABELLED = "."
"""Of a base, in a row's labels per base."""
Row = Mapping[str, str]
Raw = tuple[str, bytes, str]
"""Name, bases and split of a row."""


def read_table(
    task: TaskSection, data: LabelSection
) -> tuple[dict[str, list[Example]], tuple[str, ...]]:
    """Examples by split, and the names of the classes (of numbers: of their columns).

    Raises:
        UserError: a missing file, column or record; a row without bases or label, of another
            length than its labels, longer than `data.sequence_length`, or of an unknown split; a
            number that is none; no row to train on; a class that is absent from training.
    """
    path = Path(task.table)
    rows = _rows(path, task)
    raw = _sequences(path, rows, task, data)
    texts = [[row[c].strip() for c in _label_columns(task)] for row in rows]
    if task.kind == "regression":
        labels: list[Labels] = [_numbers(path, n, text) for n, text in enumerate(texts, start=1)]
        classes: tuple[str, ...] = tuple(_label_columns(task))
    else:
        labels, classes = _classes(path, task, raw, [text[0] for text in texts])
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for (name, bases, split), label in zip(raw, labels, strict=True):
        splits[split].append(
            Example(name, np.frombuffer(bases, np.uint8), label[: len(bases)])
            if task.kind == "token_classification"
            else Example(name, np.frombuffer(bases, np.uint8), label)
        )
    if not splits["train"]:
        raise UserError(f"{path}: no row is for training; lower the held-out fractions or mend it")
    return splits, classes


def _label_columns(task: TaskSection) -> list[str]:
    return [name.strip() for name in task.label_column.split(",")]


def _rows(path: Path, task: TaskSection) -> list[Row]:
    """The rows by column; raises UserError."""
    name = path.name.removesuffix(".gz")
    lines = (line for line in read_lines(path) if line.strip() and not line.startswith("#"))
    reader = csv.DictReader(
        lines, delimiter="," if name.endswith(".csv") else "\t", restkey="more columns"
    )
    wanted = [*_label_columns(task), task.name_column if task.fasta else task.sequence_column]
    missing = [column for column in wanted if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r}; its columns are "
            f"{', '.join(map(repr, reader.fieldnames or ()))}: name the right one in the task"
        )
    rows: list[Row] = list(reader)
    for number, row in enumerate(rows, start=1):
        if any(row.get(column) is None for column in wanted) or "more columns" in row:
            raise UserError(
                f"{path}: row {number} has another number of cells than the header; mend it"
            )
    if not rows:
        raise UserError(f"{path}: a header without rows; give a table with labelled sequences")
    return rows


def _sequences(path: Path, rows: list[Row], task: TaskSection, data: LabelSection) -> list[Raw]:
    """Name, bases and split of each row; raises UserError."""
    records = _records(Path(task.fasta)) if task.fasta else {}
    found = []
    for number, row in enumerate(rows, start=1):
        name = (row.get(task.name_column) or f"row {number}").strip()
        if task.fasta:
            if name not in records:
                raise UserError(
                    f"{path}: row {number} names {name!r}, which {task.fasta} does not hold; "
                    "give the FASTA file of this table"
                )
            bases = records[name]
        else:
            bases = row[task.sequence_column].strip().encode("latin-1", "replace")
        if not bases:
            raise UserError(f"{path}: row {number} ({name}) has no bases; leave it out")
        if len(bases) > data.sequence_length and not data.truncate:
            raise UserError(
                f"{path}: row {number} ({name}) has {len(bases)} bases, and data.sequence_length="
                f"{data.sequence_length}; raise it or set data.truncate=true"
            )
        kept = bases[: data.sequence_length]
        if data.upper_case:
            kept = kept.upper()
        found.append((name, kept, _split(path, number, row, task, data, bases)))
    return found


def _records(path: Path) -> dict[str, bytes]:
    """Records of a FASTA file of any type: the letters of protein are all that there are."""
    found: dict[str, list[bytes]] = {}
    for piece in read_pieces(path, kind=SequenceType.PROTEIN):
        found.setdefault(piece.record, []).append(piece.bases.tobytes())
    return {name: b"".join(parts) for name, parts in found.items()}


def _split(
    path: Path, number: int, row: Row, task: TaskSection, data: LabelSection, bases: bytes
) -> str:
    """The split that the row's column tells, else one drawn from its letters."""
    told = row.get(task.split_column)
    if told is not None:
        name = {"training": "train", "validation": "valid", "val": "valid", "dev": "valid"}.get(
            told.strip().lower(), told.strip().lower()
        )
        if name not in SPLITS:
            raise UserError(
                f"{path}: row {number} is of split {told!r}; write train, valid or test"
            )
        return name
    digest = hashlib.sha256(bases.upper()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < data.test_fraction:
        return "test"
    return "valid" if place < data.test_fraction + data.valid_fraction else "train"


def _numbers(path: Path, number: int, texts: Sequence[str]) -> Labels:
    """float32 [k]; NaN for an empty cell; raises UserError."""
    found = []
    for text in texts:
        try:
            value = float(text) if text else np.nan
        except ValueError:
            value = np.inf
        if np.isinf(value):
            raise UserError(
                f"{path}: row {number} has the label {text!r}, which is no finite number; mend it, "
                "or leave the cell empty where it is unknown"
            )
        found.append(value)
    return np.array(found, dtype=np.float32)


def _classes(
    path: Path, task: TaskSection, raw: Sequence[Raw], texts: Sequence[str]
) -> tuple[list[Labels], tuple[str, ...]]:
    """Numbers of the classes, and their names; raises UserError."""
    tokens = task.kind == "token_classification"
    for number, ((name, bases, _), text) in enumerate(zip(raw, texts, strict=True), start=1):
        if not text:
            raise UserError(f"{path}: row {number} ({name}) has no label; leave the row out")
        if tokens and len(text) < len(bases):
            raise UserError(
                f"{path}: row {number} ({name}) has {len(text)} labels for {len(bases)} bases; "
                f"give one character per base, {UNLABELLED!r} for none"
            )
    rows = [[*text] if tokens else [text] for text in texts]
    ignored = {UNLABELLED} if tokens else set()
    seen = {
        split: {label for row, (_, _, its) in zip(rows, raw, strict=True) if its == split
                for label in row} - ignored
        for split in SPLITS
    }  # fmt: skip
    classes = task.classes or tuple(sorted(seen["train"]))
    check_classes(str(path), task, classes, seen)
    number_of = {name: i for i, name in enumerate(classes)} | dict.fromkeys(ignored, IGNORED)
    if not tokens:
        return [np.array(number_of[row[0]], dtype=np.int64) for row in rows], classes
    return [np.array([number_of[label] for label in row], dtype=np.int16) for row in rows], classes


def check_classes(
    source: str, task: TaskSection, classes: Sequence[str], seen: Mapping[str, set[str]]
) -> None:
    """Refuse labels that cannot be learnt or told apart (UserError)."""
    for split in SPLITS:
        strange = sorted(seen[split] - {*classes})
        if strange and task.classes:
            raise UserError(
                f"{source}: the label {strange[0]!r} is none of task.classes="
                f"{list(task.classes)}; add it or mend the row"
            )
    for split in ("valid", "test"):
        absent = sorted(seen[split] - seen["train"])
        if absent:
            raise UserError(
                f"{source}: the class {absent[0]!r} is in {split} but absent from training; move "
                "some of its rows to training or leave it out"
            )
    untaught = [name for name in classes if name not in seen["train"]]
    if untaught:
        raise UserError(
            f"{source}: the class {untaught[0]!r} of task.classes is absent from training; leave "
            "it out or add rows of it"
        )
    if len(classes) < 2:
        raise UserError(
            f"{source}: the only class in training is {classes[0] if classes else None!r}; give "
            "rows of two classes or more"
        )
