"""`index.json`: what lies in a folder of shards and where, so that a reader need not search."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_hyena.data.sealed import unseal, write_sealed
from megatron_hyena.errors import UserError

INDEX_FILE = "index.json"
FORMAT = "megatron-hyena shards"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """One piece: bases [start, end) of a contig."""

    key: str
    contig: str
    start: int
    end: int
    offset: int
    """Of the first base, in bytes from the start of the tar file."""
    tracks: dict[str, int] = field(default_factory=dict)
    """The same of the first value of each track."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Shard:
    """One tar file of the folder."""

    file: str
    bytes: int
    sha256: str
    samples: tuple[Sample, ...]
    unpacked_bytes: int = 0
    """Of the tar file within, where the file is gzip; else 0. Offsets are in the tar file."""
    unpacked_sha256: str = ""

    @property
    def packed(self) -> bool:
        """Whether the file is gzip, and has to be unpacked before it can be mapped."""
        return self.unpacked_bytes > 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `asdict` copies every value of a million samples."""
        return {**self.__dict__, "samples": [sample.as_dict() for sample in self.samples]}


@dataclass(frozen=True)
class ShardIndex:
    """All shards of one split."""

    split: str
    bases: int
    gap: int
    """Bases left out between this split and the next; windows should not be longer."""
    shards: tuple[Shard, ...]
    type: str = "dna"
    """Name of the `SequenceType`; older folders hold DNA and do not tell."""
    tracks: dict[str, str] = field(default_factory=dict)
    """What the values of each track are, a name in `tracks.DTYPES`."""
    labels: dict[str, str] = field(default_factory=dict)
    """Of the track `features`: each flag, 1, 2, 4 …, and the class that it tells of."""
    weight: float = 1.0
    """How often training draws a base of these shards, relative to those of other weights."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What the shards were made of: `sources` with their SHA-256, `options`, `tool_version`, and
    `corpus`, the digest that the manifest of a corpus gives its content."""

    @property
    def digest(self) -> str:
        """SHA-256 of all that training reads: the shards' checksums, types, places, weight."""
        content: list[Any] = [self.type, self.tracks, [one.as_dict() for one in self.shards]]
        if self.weight != 1:
            content.append(self.weight)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def pieces(self) -> int:
        """Number of samples."""
        return sum(len(shard.samples) for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write `index.json` into `folder`; samples without tracks do not name them, nor are
        a weight of 1 and no labels named.

        It ends with a digest of itself (`data.sealed`).
        """
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **self.__dict__}
        content["shards"] = [shard.as_dict() for shard in self.shards]
        for sample in (sample for shard in content["shards"] for sample in shard["samples"]):
            if not sample["tracks"]:
                del sample["tracks"]
        if self.weight == 1:
            del content["weight"]
        if not self.labels:
            del content["labels"]
        for shard in content["shards"]:
            if not shard["unpacked_bytes"]:
                del shard["unpacked_bytes"], shard["unpacked_sha256"]
        write_sealed(folder / INDEX_FILE, content)

    @classmethod
    def read(cls, folder: Path) -> ShardIndex:
        """Read `folder`'s index. Raises UserError where it is missing or damaged."""
        path = folder / INDEX_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {INDEX_FILE}; name a folder of one split, such as "
                "corpus/shards/train, that tools.make_shards wrote"
            )
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, path: str) -> ShardIndex:
        """The index that `path` holds. Raises UserError where it is damaged.

        One of an older version, without a digest, is taken as it is.
        """
        try:
            content = unseal(text, required=False)
            found = (content.pop("format"), content.pop("format_version"))
            shards = tuple(
                Shard(**{**shard, "samples": tuple(Sample(**s) for s in shard["samples"])})
                for shard in content.pop("shards")
            )
            index = cls(shards=shards, **content)
            if any(set(s.tracks) != set(index.tracks) for shard in shards for s in shard.samples):
                raise ValueError("a sample has other tracks than the folder")
            if not (math.isfinite(index.weight) and index.weight > 0):
                raise ValueError(f"its weight is {index.weight}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); run tools.make_shards again") from error
        if found != (FORMAT, FORMAT_VERSION):
            raise UserError(
                f"{path} has format {found[0]!r}, version {found[1]!r}, not {FORMAT!r}, version "
                f"{FORMAT_VERSION}; run tools.make_shards again"
            )
        return index
