"""The files that a genome store is made from: which they are, how they are read, their sums."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_hyena.corpus.labels import has_label
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.tracks import check_track_name
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation
from megatron_hyena.formats.features import AnnotatedRecord
from megatron_hyena.formats.locate import (
    ANNOTATION_ENDINGS,
    SEQUENCE_ENDINGS,
    TRACK_ENDINGS,
    locate,
)
from megatron_hyena.formats.sequences import sequence_format
from megatron_hyena.formats.track_files import check_track_file

CONSERVATION = "conservation"
"""The track that an alignment brings with its reference's bases."""

_TYPED = re.compile(r"([A-Za-z_]\w*)=(.+)")


class Checksum:
    """SHA-256 of a file, taken while it is read anyway."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._bytes = 0

    def update(self, data: Any, /) -> None:
        """Take the next bytes."""
        self._digest.update(data)
        self._bytes += len(data)

    def of(self, path: Path) -> str:
        """Hexadecimal; the file is read again where a reader did not need all of it."""
        whole = self._bytes == path.stat().st_size
        return self._digest.hexdigest() if whole else sha256_of(path)


@dataclass(frozen=True)
class Sources:
    """Every input, found and told apart by content before anything is written."""

    sequences: dict[Path, str]
    """File → its format, as `sequence_format` names it."""
    annotation: dict[Path, str]
    """File → the type of its features, empty where it tells itself."""
    tracks: dict[str, list[Path]]
    maf_reference: str | None = None
    checksums: dict[Path, Checksum] = field(default_factory=dict)
    references: dict[Path, str] = field(default_factory=dict)
    """MAF file → the row that became the genome; filled while it is read."""

    @property
    def has_alignment(self) -> bool:
        """Whether a file is MAF."""
        return "maf" in self.sequences.values()

    def checksum(self, path: Path) -> Checksum:
        """The sum of a sequence file, to be shown what is read of it."""
        return self.checksums.setdefault(path, Checksum())

    def annotated(self) -> list[AnnotatedRecord]:
        """All records with features: of the annotation, and of sequence files that hold them."""
        records = [r for path, kind in self.annotation.items() for r in read_annotation(path, kind)]
        for path, found in self.sequences.items():
            if found == "flat" and path not in self.annotation:
                records += [record for record in read_annotation(path) if record.features]
        return records

    def described(self) -> list[dict[str, Any]]:
        """Role, name, size and SHA-256 of each file, for the attributes of the store."""
        return [
            *(self._described(path, "sequence") for path in self.sequences),
            *(self._described(path, "annotation") for path in self.annotation),
            *(
                self._described(path, f"track {name}")
                for name, paths in self.tracks.items()
                for path in paths
            ),
        ]

    def _described(self, path: Path, role: str) -> dict[str, Any]:
        """The file's name, not its folder, so that reruns agree."""
        told = {
            "role": role,
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": self.checksums.get(path, Checksum()).of(path),
        }
        return {**told, "reference": self.references[path]} if path in self.references else told


def find_sources(
    sequences: Sequence[str | Path],
    annotation: Sequence[str | Path] = (),
    tracks: Mapping[str, str | Path] | None = None,
    maf_reference: str | None = None,
) -> Sources:
    """Find the files that are meant: each of the names is a file, a folder or a glob.

    Of `annotation`, TYPE=NAME says what the rows of BED files are that do not tell. Raises
    UserError for names that stand for no file, sequence files that cannot be read, types that
    label nothing, tracks that cannot be opened, and what contradicts itself.
    """
    for name in tracks or {}:
        check_track_name(name)
    found_tracks = {n: locate([place], TRACK_ENDINGS) for n, place in (tracks or {}).items()}
    for path in (path for paths in found_tracks.values() for path in paths):
        check_track_file(path)
    typed = [_typed(one) for one in annotation]
    found = Sources(
        {path: sequence_format(path) for path in locate(sequences, SEQUENCE_ENDINGS)},
        {path: kind for kind, one in typed for path in locate([one], ANNOTATION_ENDINGS)},
        found_tracks,
        maf_reference,
    )
    if found.has_alignment and CONSERVATION in found.tracks:
        raise UserError(
            f"the alignment brings the track {CONSERVATION!r}, and --track gives it too; name the "
            "file's track otherwise"
        )
    if maf_reference is not None and not found.has_alignment:
        raise UserError(
            f"--maf-reference {maf_reference} is given, but no file is MAF; leave it out"
        )
    return found


def _typed(one: str | Path) -> tuple[str, str]:
    """The type and the name of `TYPE=NAME`; no type where there is a file of the whole name."""
    found = _TYPED.fullmatch(str(one))
    if found is None or Path(one).exists():
        return "", str(one)
    if not has_label(found[1]):
        raise UserError(
            f"{one}: features of type {found[1]!r} label no base; use a type such as gene, exon, "
            "CDS, tRNA, rRNA, ncRNA or repeat_region"
        )
    return found[1], found[2]
