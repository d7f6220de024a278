"""What is kept, which split it goes to, and which tar file of which folder: decided in one place.

    plan/plan.json       totals: what was dropped and why, the bases of each split, the folders
    plan/records.tsv     a line for every record: kept or the reason it was dropped, and its split
    plan/FOLDER.jsonl    a line for every tar file: [sample, number, contig, start, end] of each
                         portion in it, FOLDER being train, or dna-train where types are mixed, or
                         weight-2-train where weights are

Any tar file can be written from its line alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from megatron_hyena.corpus.decisions import decide
from megatron_hyena.corpus.options import CorpusOptions, ShardsSection
from megatron_hyena.corpus.pieces import Piece, Portion, cut_pieces, fill_shards
from megatron_hyena.corpus.records import Decision, Record
from megatron_hyena.corpus.splits import SPLITS
from megatron_hyena.corpus.splitting import Splitting, split_records
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError

PLAN = "plan"
TRAIN = SPLITS[0]
FORMAT = "megatron-hyena plan"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """The decisions on all records."""

    records: tuple[Record, ...]
    decisions: tuple[Decision, ...]
    splitting: Splitting
    """Of the records that are kept."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Sample → its weight in training, of those whose weight is not 1."""

    @property
    def kept(self) -> list[Record]:
        """In order."""
        pairs = zip(self.records, self.decisions, strict=True)
        return [record for record, decision in pairs if decision.kept]

    def folders(self) -> dict[tuple[SequenceType, str, float], list[Portion]]:
        """(type, split, weight) → what goes there, for all that get something.

        Weights are for training alone; of valid and test they are 1.
        """
        numbered = {record.name: (i, record) for i, record in enumerate(self.records)}
        portions: dict[tuple[SequenceType, str, float], list[Portion]] = {}
        for stretch in self.splitting.stretches:
            number, record = numbered[stretch.contig]
            portion = Portion(record.sample, number, record.contig, stretch.start, stretch.end)
            weight = self.weights.get(record.sample, 1.0) if stretch.split == TRAIN else 1.0
            portions.setdefault((record.type, stretch.split, weight), []).append(portion)
        order = sorted(portions, key=lambda key: (key[0], SPLITS.index(key[1]), key[2]))
        return {key: portions[key] for key in order}


def make_plan(
    records: Sequence[Record],
    options: CorpusOptions,
    fixed: Mapping[str, str],
    weights: Mapping[str, float] = MappingProxyType({}),
) -> Plan:
    """Decide on `records`, all of the corpus, in the order of samples and contigs.

    `fixed`: sample → split, of the sheet; `weights`: sample → weight, 1 if left out. Raises
    UserError as `decide` and `split_records` do, and where nothing is left.
    """
    decisions = decide(records, options.curation)
    kept = [record for record, found in zip(records, decisions, strict=True) if found.kept]
    if not kept:
        reasons = Counter(decision.reason for decision in decisions)
        told = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise UserError(f"curation leaves none of {len(records)} records ({told}); loosen it")
    present = {record.sample for record in kept}
    told_splits = {sample: split for sample, split in fixed.items() if sample in present}
    splitting = split_records(kept, options.splits, told_splits)
    return Plan(tuple(records), tuple(decisions), splitting, weights)


def write_plan(folder: Path, plan: Plan, shards: ShardsSection) -> dict[str, Any]:
    """Write the files of a plan into `folder`.

    Returns, for each folder of shards (`shards/train`), its split, type and weight and, for each
    tar file, its bases, samples and the SHA-256 of its line: what a task of one needs to be known
    by.
    """
    folders = plan.folders()
    found: dict[str, Any] = {}
    for (kind, split, weight), portions in folders.items():
        type_name = kind.name.lower()
        name = _folder_name(kind, split, weight, folders)
        files = []
        with _lines(folder, name).open("wb") as file:
            for pieces in fill_shards(
                cut_pieces(split, portions, shards.piece_length), shards.shard_size
            ):
                line = _line(pieces)
                file.write(line)
                files.append(
                    {
                        "bases": sum(piece.length for piece in pieces),
                        "samples": sorted({piece.sample for piece in pieces}),
                        "sha256": hashlib.sha256(line).hexdigest(),
                    }
                )
        found[name] = {"split": split, "type": type_name, "weight": weight, "files": files}
    (folder / "records.tsv").write_text("".join(_table(plan)), encoding="utf-8")
    text = {"format": FORMAT, "format_version": FORMAT_VERSION, **summary(plan)}
    text["folders"] = {name: len(told["files"]) for name, told in found.items()}
    (folder / "plan.json").write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return found


def _folder_name(
    kind: SequenceType,
    split: str,
    weight: float,
    folders: Iterable[tuple[SequenceType, str, float]],
) -> str:
    """`train`, below its type where there are several, and below its weight where there are."""
    keys = list(folders)
    parts = [kind.name.lower()] if len({one for one, _, _ in keys}) > 1 else []
    if len({w for one, other, w in keys if (one, other) == (kind, split)}) > 1:
        parts.append(f"weight-{repr(weight).removesuffix('.0')}")
    return "/".join([*parts, split])


def read_pieces_of(
    folder: Path, name: str, split: str, number: int, piece_length: int
) -> list[Piece]:
    """The pieces of tar file `number` of the folder of shards `name`."""
    with _lines(folder, name).open("rb") as file:
        line = next(islice(file, number, None))
    portions = (Portion(*values) for values in json.loads(line))
    return list(cut_pieces(split, portions, piece_length))


def read_portions(folder: Path) -> Iterator[tuple[str, Piece]]:
    """(split, portion) of everything in the plan, by folder and tar file; keys are empty."""
    for path in sorted(folder.glob("*.jsonl")):
        split = path.stem.rpartition("-")[2]
        for line in path.read_bytes().splitlines():
            for sample, _, contig, start, end in json.loads(line):
                yield split, Piece("", sample, contig, start, end)


def summary(plan: Plan) -> dict[str, Any]:
    """Totals for reports."""
    dropped: dict[str, dict[str, int]] = {}
    for decision in plan.decisions:
        if not decision.kept:
            entry = dropped.setdefault(decision.reason, {"records": 0, "bases": 0})
            entry["records"] += 1
            entry["bases"] += decision.bases
    lengths = sum(record.length for record in plan.records)
    curated = sum(record.counts.bases for record in plan.records)
    return {
        "records": len(plan.records),
        "bases": lengths,
        "kept": {"records": len(plan.kept), "bases": sum(r.counts.bases for r in plan.kept)},
        "dropped": dict(sorted(dropped.items())),
        "left_out_of_records": lengths - curated,
        "splits": plan.splitting.bases(),
        "groups": len(plan.splitting.groups),
    }


def _lines(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '-')}.jsonl"


def _line(pieces: Iterable[Piece]) -> bytes:
    """The pieces of a tar file, those that abut joined; `cut_pieces` parts them again."""
    portions: list[list[Any]] = []
    for piece in pieces:
        number = int(piece.key.split("-")[1])
        last = portions[-1] if portions else None
        if last and (last[1], last[4]) == (number, piece.start):
            last[4] = piece.end
        else:
            portions.append([piece.sample, number, piece.contig, piece.start, piece.end])
    return json.dumps(portions, separators=(",", ":")).encode("utf-8") + b"\n"


def _table(plan: Plan) -> Iterator[str]:
    splits: dict[str, list[str]] = {}
    for stretch in plan.splitting.stretches:
        known = splits.setdefault(stretch.contig, [])
        if stretch.split not in known:
            known.append(stretch.split)
    kept = plan.kept
    groups = {
        kept[member].name: group.name for group in plan.splitting.groups for member in group.members
    }
    yield "record\ttype\ttaxon\tlength\tbases\tdecision\tinstead\tsimilarity\tsplit\tgroup\n"
    for record, decision in zip(plan.records, plan.decisions, strict=True):
        cells = (
            record.name,
            record.type.name.lower(),
            record.taxon,
            str(record.length),
            str(record.counts.bases),
            decision.reason or "kept",
            decision.duplicate_of,
            f"{decision.similarity:.4f}" if decision.duplicate_of else "",
            ",".join(splits.get(record.name, [])),
            groups.get(record.name, ""),
        )
        yield "\t".join(cells) + "\n"
