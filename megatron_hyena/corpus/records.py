"""What is known of a sequence before it is cut into shards: its record, and what is decided on it.

Curation, duplicates, splits and reports need numbers about sequences, not the sequences: a record
holds them. It is made once for each contig of each sample, where the sample's store is written, and
kept in two files: NAME.json for people, with names and totals, and NAME.npz with the numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.errors import UserError

Hashes = npt.NDArray[np.uint64]
"""Hash values of k-mers, sorted, each once."""

FORMAT = "megatron-hyena records"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Counts:
    """Letters of what is left of a record after curation."""

    bases: int = 0
    """All of them: the length of the stretches together."""
    gc: int = 0
    """G, C and S of either case; 0 of a protein."""
    unknown: int = 0
    """N, of a protein X, of either case."""
    ambiguous: int = 0
    """Codes that stand for several letters but not for all, such as R, of a protein B, J and Z."""
    lower: int = 0
    """Letters in lower case."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def _no_hashes() -> Hashes:
    return np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """One contig of one sample."""

    sample: str
    contig: str
    taxon: str
    """A name, a lineage with `;` between its levels, or nothing."""
    type: SequenceType
    length: int
    """Bases in the store."""
    sha256: str
    """Hexadecimal, of the sequence in upper case (`curation.sequence_digest`): equal for a DNA
    sequence and its reverse complement."""
    stretches: tuple[tuple[int, int], ...]
    """[start, end) of what is left after curation, in order and apart."""
    counts: Counts = Counts()
    sketch: Hashes = field(default_factory=_no_hashes)
    """Hashes of some of its k-mers (`sketch.py`)."""

    @property
    def name(self) -> str:
        """SAMPLE/CONTIG: one name in the whole corpus."""
        return f"{self.sample}/{self.contig}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        same = all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self)[:-1])
        return same and np.array_equal(self.sketch, other.sketch)

    def __hash__(self) -> int:
        return hash((self.sample, self.contig, self.sha256))


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a record is kept, and if not, why."""

    name: str
    """SAMPLE/CONTIG."""
    kept: bool
    reason: str = ""
    """Nothing where it is kept; else one of `decisions.REASONS`."""
    duplicate_of: str = ""
    """The record that is kept in its place."""
    similarity: float = 0.0
    """Of it and the record that is kept in its place; 1 where they are equal."""
    bases: int = 0
    """Bases of its stretches: what the decision keeps or drops."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def write_records(stem: Path, records: Sequence[Record]) -> tuple[Path, Path]:
    """Write STEM.npz, then STEM.json, each by atomic rename; returns the two paths.

    The same records give the same bytes.
    """
    numbers = _file(stem, "npz")
    buffer = io.BytesIO()
    columns: dict[str, Any] = _columns(records)
    np.savez(buffer, **columns)
    _write(numbers, buffer.getvalue())
    samples, taxa = _names(records)
    text = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "records": len(records),
        "bases": sum(record.counts.bases for record in records),
        "npz_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "samples": samples,
        "taxa": taxa,
        "contigs": [record.contig for record in records],
    }
    names = _file(stem, "json")
    _write(names, (json.dumps(text, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    return names, numbers


def read_records(stem: Path) -> list[Record]:
    """The records that `write_records` wrote, in their order.

    Raises UserError where a file is missing, of another format, or the two do not belong together.
    """
    names, numbers = _file(stem, "json"), _file(stem, "npz")
    for path in (names, numbers):
        if not path.is_file():
            raise UserError(f"{path} is missing; make the records of this sample again")
    text = _read_json(names)
    if sha256_of(numbers) != text["npz_sha256"]:
        raise UserError(
            f"{numbers} is not the file that {names.name} was written with; "
            "make the records of this sample again"
        )
    with np.load(numbers, allow_pickle=False) as columns:
        return _records(text, {name: columns[name] for name in columns.files})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); make the records again") from error
    found = (text.get("format"), text.get("format_version")) if isinstance(text, dict) else ()
    if found != (FORMAT, FORMAT_VERSION):
        raise UserError(
            f"{path} holds {found}, not {(FORMAT, FORMAT_VERSION)}; make the records again"
        )
    return dict(text)


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(f"{stem.name}.{suffix}")  # a sample's name may hold a dot


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _names(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """The samples and the taxa, each once, in the order of the records."""
    samples = dict.fromkeys(record.sample for record in records)
    return list(samples), list(dict.fromkeys(record.taxon for record in records))


def _columns(records: Sequence[Record]) -> dict[str, Any]:
    """One array for each number of a record; ragged ones behind one another, with offsets."""
    samples, taxa = ({name: i for i, name in enumerate(names)} for names in _names(records))
    digests = b"".join(bytes.fromhex(record.sha256) for record in records)
    counts = [[getattr(r.counts, f.name) for f in fields(Counts)] for r in records]
    stretches = [place for record in records for place in record.stretches]
    return {
        "sample": np.array([samples[r.sample] for r in records], dtype=np.int32),
        "taxon": np.array([taxa[r.taxon] for r in records], dtype=np.int32),
        "type": np.array([r.type for r in records], dtype=np.uint8),
        "length": np.array([r.length for r in records], dtype=np.int64),
        "sha256": np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        "counts": np.array(counts, dtype=np.int64).reshape(-1, len(fields(Counts))),
        "stretches": np.array(stretches, dtype=np.int64).reshape(-1, 2),
        "stretch_offsets": _offsets([len(r.stretches) for r in records]),
        "hashes": np.concatenate([_no_hashes(), *(r.sketch for r in records)]),
        "hash_offsets": _offsets([len(r.sketch) for r in records]),
    }


def _offsets(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)


def _records(text: dict[str, Any], columns: dict[str, npt.NDArray[Any]]) -> list[Record]:
    """The inverse of `_columns`."""
    stretches = [(start, end) for start, end in columns["stretches"].tolist()]
    parts = zip(
        text["contigs"],
        columns["sample"].tolist(),
        columns["taxon"].tolist(),
        columns["type"].tolist(),
        columns["length"].tolist(),
        columns["sha256"],
        pairwise(columns["stretch_offsets"].tolist()),
        columns["counts"].tolist(),
        pairwise(columns["hash_offsets"].tolist()),
        strict=True,
    )
    return [
        Record(
            text["samples"][sample],
            contig,
            text["taxa"][taxon],
            SequenceType(kind),
            length,
            digest.tobytes().hex(),
            tuple(stretches[slice(*places)]),
            Counts(*counts),
            columns["hashes"][slice(*hashes)],
        )
        for contig, sample, taxon, kind, length, digest, places, counts, hashes in parts
    ]
