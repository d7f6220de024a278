"""The samples of a corpus: what the options or the sheet name, resolved to files that exist.

A URL (`s3://`, `http://`, `https://`) stands for one file, which the sample's own task downloads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_hyena.corpus.options import InputsSection
from megatron_hyena.corpus.sources import find_sources
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.remote import is_remote
from megatron_hyena.data.tracks import check_track_name
from megatron_hyena.errors import UserError
from megatron_hyena.formats.locate import (
    ANNOTATION_ENDINGS,
    SEQUENCE_ENDINGS,
    TRACK_ENDINGS,
    locate,
    without_endings,
)
from megatron_hyena.formats.sheet import Location, SampleRow, read_sheet


@dataclass(frozen=True)
class Sample:
    """One store of the corpus and the files it is made of."""

    row: SampleRow
    """Its `annotation` and `tracks` as they were named, for `write_store`."""
    sequences: tuple[Location, ...]
    files: tuple[tuple[str, Location], ...]
    """Role and place of every file, in the order of the store's list of sources: a path, or as
    text a URL."""
    maf_reference: str | None = None

    @property
    def name(self) -> str:
        """Of its store, and the begin of its contigs' names."""
        return self.row.name

    @property
    def bytes(self) -> int:
        """Of its sequence files on this machine."""
        return sum(place.stat().st_size for place in self.sequences if isinstance(place, Path))

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
    files = _located(inputs.paths, SEQUENCE_ENDINGS)
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


def _name_of(file: Location) -> str:
    name = without_endings(str(file).rpartition("/")[2])
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
    given = (*sequences, *row.annotation, *row.tracks.values())
    try:
        if any(is_remote(parted(place)[1]) for place in given):
            files = _unopened(row, sequences)
        else:
            found = find_sources(sequences, row.annotation, row.tracks, maf_reference)
            files = [
                *(("sequence", path) for path in found.sequences),
                *(("annotation", path) for path in found.annotation),
                *((f"track {n}", path) for n, paths in found.tracks.items() for path in paths),
            ]
    except UserError as error:
        raise UserError(f"sample {row.name}: {error}") from error
    for _, place in files:
        if isinstance(place, Path) and not place.is_file():
            raise UserError(f"{place} of the sample {row.name} does not exist; check the path")
    inside = tuple(place for role, place in files if role == "sequence")
    return Sample(row, inside, tuple(files), maf_reference)


def _unopened(row: SampleRow, sequences: Sequence[Location]) -> list[tuple[str, Location]]:
    """Role and place of the files of a sample of which some cannot be looked at yet."""
    for name in row.tracks:
        check_track_name(name)
    annotation = [parted(place)[1] for place in row.annotation]
    tracks = ((name, _located([place], TRACK_ENDINGS)) for name, place in row.tracks.items())
    return [
        *(("sequence", place) for place in _located(sequences, SEQUENCE_ENDINGS)),
        *(("annotation", place) for place in _located(annotation, ANNOTATION_ENDINGS)),
        *((f"track {name}", place) for name, places in tracks for place in places),
    ]


def _located(given: Sequence[Location], endings: Sequence[str]) -> list[Location]:
    """Files, as `locate` finds them, and URLs as they are."""
    places: list[Location] = []
    for one in given:
        places += [str(one)] if is_remote(one) else locate([one], endings)
    return places


def parted(location: Location) -> tuple[str, str]:
    """`TYPE=`, or nothing, and the file's place."""
    head, equals, rest = str(location).partition("=")
    return (head + equals, rest) if equals and head.isidentifier() else ("", str(location))
