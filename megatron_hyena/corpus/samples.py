"""The samples of a corpus: what the options or the sheet name, resolved to files that exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_hyena.corpus.options import InputsSection
from megatron_hyena.corpus.sources import find_sources
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.locate import SEQUENCE_ENDINGS, locate, without_endings
from megatron_hyena.formats.sheet import Location, SampleRow, read_sheet


@dataclass(frozen=True)
class Sample:
    """One store of the corpus and the files it is made of."""

    row: SampleRow
    """Its `annotation` and `tracks` as they were named, for `write_store`."""
    sequences: tuple[Path, ...]
    files: tuple[tuple[str, Path], ...]
    """Role and path of every file, in the order of the store's list of sources."""
    maf_reference: str | None = None

    @property
    def name(self) -> str:
        """Of its store, and the begin of its contigs' names."""
        return self.row.name

    @property
    def bytes(self) -> int:
        """Of its sequence files."""
        return sum(path.stat().st_size for path in self.sequences)

    def describe(self) -> dict[str, Any]:
        """For the manifest and the shards' indices."""
        row = self.row
        return {
            "name": row.name,
            "taxon": row.taxon,
            "type": row.type.name.lower(),
            "split": row.split,
            "weight": row.weight,
        }


def read_samples(inputs: InputsSection) -> list[Sample]:
    """The samples, in the order of the sheet or the paths.

    Raises UserError where nothing or a file that is missing is named, for two samples of one name,
    and for annotation and tracks of several.
    """
    if inputs.sheet:
        samples = [_resolved(row, [row.path]) for row in read_sheet(Path(inputs.sheet))]
    elif inputs.paths:
        samples = _of_paths(inputs)
    else:
        raise UserError(
            "the corpus names no sequences; give inputs.paths or inputs.sheet in the file or on "
            "the command line"
        )
    seen: dict[str, Sample] = {}
    for sample in samples:
        other = seen.setdefault(sample.name.lower(), sample)  # some file systems know no case
        if other is not sample:
            raise UserError(
                f"{other.sequences[0]} and {sample.sequences[0]} would both be the sample "
                f"{sample.name}; name them in a sample sheet"
            )
    return samples


def _of_paths(inputs: InputsSection) -> list[Sample]:
    files = locate(inputs.paths, SEQUENCE_ENDINGS)
    groups = [(inputs.name, files)] if inputs.name else [(_name_of(file), [file]) for file in files]
    if len(groups) > 1 and (inputs.annotation or inputs.tracks):
        key = "annotation" if inputs.annotation else "tracks"
        raise UserError(
            f"inputs.{key} is of one sample, but inputs.paths are {len(groups)}; give inputs.name "
            "to make them one, or a sample sheet"
        )
    row = SampleRow(
        name="",
        path="",
        taxon=inputs.taxon,
        type=SequenceType.named(inputs.type),
        annotation=inputs.annotation,
        tracks=_tracks(inputs.tracks),
    )
    reference = inputs.maf_reference or None
    return [_resolved(replace(row, name=name), group, reference) for name, group in groups]


def _name_of(file: Path) -> str:
    name = without_endings(file.name)
    return "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "_" for c in name)


def _tracks(given: Sequence[str]) -> dict[str, Location]:
    tracks: dict[str, Location] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (equals and file) or name in tracks:
            fault = "stands twice" if name in tracks else "names no file"
            raise UserError(f"inputs.tracks: {text!r} {fault}; write NAME=FILE, each name once")
        tracks[name] = file
    return tracks


def _resolved(
    row: SampleRow, sequences: Sequence[Location], maf_reference: str | None = None
) -> Sample:
    for location in (*sequences, *row.annotation, *row.tracks.values()):
        if "://" in str(location):
            raise UserError(
                f"{location} of the sample {row.name} is not on this machine; download it first"
            )
    try:
        found = find_sources(sequences, row.annotation, row.tracks, maf_reference)
    except UserError as error:
        raise UserError(f"sample {row.name}: {error}") from error
    files = (
        *(("sequence", path) for path in found.sequences),
        *(("annotation", path) for path in found.annotation),
        *((f"track {name}", path) for name, paths in found.tracks.items() for path in paths),
    )
    for _, path in files:
        if not path.is_file():
            raise UserError(f"{path} of the sample {row.name} does not exist; check the path")
    return Sample(row, tuple(found.sequences), files, maf_reference)
