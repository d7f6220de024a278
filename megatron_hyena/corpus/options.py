"""The configuration of a corpus: frozen sections, from YAML files and dotted overrides.

The string under a field is its documentation. Which files are meant is in `inputs`; the rest are
the rules of the rooms that apply them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from megatron_hyena.corpus.curation import CurationRules
from megatron_hyena.corpus.sketch import SketchRules
from megatron_hyena.corpus.splitting import SplitRules
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.tracks import check_track_name
from megatron_hyena.errors import UserError
from megatron_hyena.yaml_sections import load_sections

LEAKAGE_METHODS = ("auto", "sequences", "sketches", "none")


@dataclass(frozen=True)
class InputsSection:
    """Which files the corpus is made of: `sheet`, or `paths` and what belongs to them."""

    sheet: str = ""
    """A sample sheet: a table of genomes, one a line (docs/corpus.md)."""
    paths: tuple[str, ...] = ()
    """Sequence files, folders of them, or globs."""
    name: str = ""
    """All `paths` together are one sample of this name; empty: each file is one, named after it."""
    type: str = "dna"
    """What all `paths` hold: `dna`, `rna`, `protein` or `mixed`."""
    taxon: str = ""
    """Of all `paths`: a name, or a lineage with `;` between its levels."""
    annotation: tuple[str, ...] = ()
    """Annotation files of the one sample that `paths` are: labels per base."""
    tracks: tuple[str, ...] = ()
    """NAME=FILE of bedGraph or bigWig files of the one sample: numbers per base."""
    maf_reference: str = ""
    """Of alignments among `paths`: whose row becomes the genome; empty: the first row's."""

    def __post_init__(self) -> None:
        SequenceType.named(self.type)
        told = [
            k
            for k in ("name", "taxon", "annotation", "tracks", "maf_reference")
            if getattr(self, k)
        ]
        if self.sheet and (self.paths or told or self.type != "dna"):
            extra = ["paths"] if self.paths else told or ["type"]
            raise UserError(
                f"inputs.sheet is {self.sheet}, which tells inputs.{extra[0]} of each sample; "
                "remove one of the two"
            )


@dataclass(frozen=True)
class ShardsSection:
    """How what is left after curation is cut into pieces and tar files."""

    piece_length: int = 1 << 17
    """Bases of one piece, a sample of WebDataset."""
    shard_size: int = 1 << 26
    """Bases of one tar file, at most (but one piece at least)."""
    features: bool = False
    """Also write the labels, the track `features` of `data.tracks`; all samples of a type have an
    annotation, or none has."""
    tracks: tuple[str, ...] = ()
    """Tracks to write beside the bases, such as `conservation`; numbers that a sample lacks are
    unknown."""

    compress: bool = False
    """Write .tar.gz, a third of the size or less, which training unpacks into its cache."""

    def __post_init__(self) -> None:
        for name in self.tracks:
            check_track_name(name)
        if len(set(self.tracks)) < len(self.tracks):
            raise UserError(f"shards.tracks {' '.join(self.tracks)} holds a name twice; keep one")
        if self.piece_length < 1 or self.shard_size < 1:
            raise UserError("shards.piece_length and shards.shard_size must be 1 base or more")


@dataclass(frozen=True)
class LeakageSection:
    """The report on k-mers that splits share."""

    method: str = "auto"
    """`sequences` counts k-mers of the sequences, all of a small corpus and a sample of a larger
    one; `sketches` compares the sketches of records, which is fast (not by position); `none`
    leaves the report out; `auto` counts a small corpus and takes sketches of a larger one where
    there are some."""

    def __post_init__(self) -> None:
        if self.method not in LEAKAGE_METHODS:
            raise UserError(
                f"leakage.method is {self.method!r}; give one of {', '.join(LEAKAGE_METHODS)}"
            )


@dataclass(frozen=True)
class CorpusOptions:
    """All sections."""

    inputs: InputsSection = field(default_factory=InputsSection)
    curation: CurationRules = field(default_factory=CurationRules)
    sketch: SketchRules = field(default_factory=SketchRules)
    splits: SplitRules = field(default_factory=SplitRules)
    leakage: LeakageSection = field(default_factory=LeakageSection)
    shards: ShardsSection = field(default_factory=ShardsSection)

    def __post_init__(self) -> None:
        if self.leakage.method == "sketches" and self.splits.by == "position":
            raise UserError(
                "leakage.method=sketches cannot tell splits by position apart, since a sketch is "
                "of a whole record; use leakage.method=sequences"
            )

    @property
    def needs_sketches(self) -> bool:
        """Whether a rule asks how alike records are."""
        asked = self.curation.near_duplicates > 0 or self.leakage.method == "sketches"
        return asked or self.splits.by == "cluster"


def load_options(path: str | Path | None, overrides: Iterable[str] = ()) -> CorpusOptions:
    """Read the options of a corpus; raises UserError as `load_sections` does."""
    return load_sections(CorpusOptions, path, overrides, "configs/corpus/")
