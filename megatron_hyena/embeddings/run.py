"""Embed sequences: check everything, then read them one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_hyena.checkpoint.source import TrainedModel, check_tracks, trained_model
from megatron_hyena.data.alphabet import SequenceType, reverse_complement
from megatron_hyena.data.atomic import sha256_of
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.tracks import BOUNDARIES, TYPE
from megatron_hyena.embeddings.options import EmbedOptions
from megatron_hyena.embeddings.parquet_output import ParquetOutput, numbered
from megatron_hyena.embeddings.pooling import Pooler, Rows
from megatron_hyena.embeddings.reading import Read, check_lengths, states_along
from megatron_hyena.embeddings.stretches import Stretch, bed_stretches, whole_contigs
from megatron_hyena.embeddings.zarr_output import zarr_output
from megatron_hyena.errors import UserError
from megatron_hyena.formats.reference import Reference, open_reference
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.states import layer_name
from megatron_hyena.observe.progress import progress

FORMAT = "megatron-hyena embeddings"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Report:
    """What was written: sequences, rows, numbers of a row; `resumed` sequences were there."""

    output: Path
    sequences: int
    rows: int
    width: int
    resumed: int


def embed(
    source: str | Path | HyenaGLT,
    sequences: str | Path,
    output: str | Path,
    options: EmbedOptions | None = None,
    *,
    bed: str | Path | None = None,
    kind: SequenceType = SequenceType.DNA,
    overwrite: bool = False,
) -> Report:
    """Write states of `sequences` to `output`, a folder `.zarr` or a file `.parquet`.

    A second call of the same goes on where the first was stopped.

    Args:
        source: a run folder, a checkpoint, a folder of `save_pretrained`, or a model.
        sequences: a sequence file or a genome store; its tracks are shown to models that read them.
        bed: embed these intervals of it, each by itself; None for whole contigs.
        kind: of the letters of a file.
    Raises:
        UserError: before anything is computed: see `check_lengths`, `check_tracks`,
            `bed_stretches`, `layer_name`, `zarr_output` and `Parts`.
    """
    options, output = options or EmbedOptions(), Path(output)
    if output.suffix not in (".zarr", ".parquet"):
        raise UserError(f"{output}: --output ends in .zarr or .parquet; rename it")
    trained = trained_model(source)
    layer = layer_name(options.layer, trained.model)
    reference = open_reference(Path(sequences), kind)
    store = GenomeStore.open(sequences) if Path(sequences).is_dir() else None
    check_tracks(trained, options.without_tracks, () if store is None else store.tracks)
    stretches = whole_contigs(reference) if bed is None else bed_stretches(Path(bed), reference)
    longest = max(stretches, key=lambda stretch: stretch.length)
    check_lengths(trained, (longest.name, longest.length), options)
    reader = _Reader(trained, reference, store)
    reader.check(stretches)
    settings = _settings(trained, options, layer, reference, bed)
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    model = trained.model.to(options.device, dtype)

    def pieces(stretch: Stretch, tell: Callable[[int], object]) -> Iterator[Rows]:
        pooler = Pooler(options.bases, options.pool)
        for states in states_along(model, reader.of(stretch), stretch.length, options):
            tell(len(states))
            yield pooler.feed(states.cpu().numpy())
        yield pooler.finish()

    rows = sum(options.rows(stretch.length) for stretch in stretches)
    make = _to_zarr if output.suffix == ".zarr" else _to_parquet
    width = model.config.hidden_size
    resumed = make(output, settings, stretches, options, width, overwrite, pieces)
    return Report(output, len(stretches), rows, width, resumed)


Pieces = Callable[[Stretch, Callable[[int], object]], Iterator[Rows]]


def _to_zarr(
    output: Path,
    settings: dict[str, Any],
    stretches: list[Stretch],
    options: EmbedOptions,
    width: int,
    overwrite: bool,
    pieces: Pieces,
) -> int:
    """Number of sequences that an earlier call had finished."""
    with zarr_output(output, settings, stretches, options, width, overwrite) as into:
        before = into.done or 0
        with _bar(stretches, stretches[:before]) as bar:
            for number in range(before, len(stretches)):
                into.write(number, (r for r in pieces(stretches[number], bar.update) if len(r)))
        into.finish()
    return before


def _to_parquet(
    output: Path,
    settings: dict[str, Any],
    stretches: list[Stretch],
    options: EmbedOptions,
    width: int,
    overwrite: bool,
    pieces: Pieces,
) -> int:
    into = ParquetOutput(output, settings, stretches, options, overwrite)
    missing = into.missing()
    still = {number for _, group in missing for number in group}
    done = [stretch for number, stretch in enumerate(stretches) if number not in still]
    with _bar(stretches, done) as bar:
        for part, group in missing:
            into.write(
                part,
                (
                    found
                    for number in group
                    for found in numbered(stretches[number], pieces(stretches[number], bar.update))
                ),
            )
    into.finish({"megatron_hyena": json.dumps(settings)})
    return len(done)


def _bar(stretches: list[Stretch], done: list[Stretch]) -> Any:
    total, before = (sum(stretch.length for stretch in some) for some in (stretches, done))
    return progress(description="bases", total=total, unit="b", initial=before)


class _Reader:
    """Bytes and tracks as a model wants them."""

    def __init__(
        self, trained: TrainedModel, reference: Reference, store: GenomeStore | None
    ) -> None:
        self.trained, self.reference = trained, reference
        stored = [] if store is None else [n for n in trained.tracks if n in store.tracks]
        if store is not None and BOUNDARIES in store.tracks:
            precomputed = trained.model.config.merger == "precomputed"
            stored = sorted({*stored, BOUNDARIES}) if precomputed else stored
        self.tracks = {name: store.track(name) for name in stored} if store else {}
        self.typed = trained.model.config.type_embedding != "none"

    def check(self, stretches: list[Stretch]) -> None:
        """Refuse boundaries on the other strand, as `data.window` does."""
        turned = [stretch.name for stretch in stretches if stretch.reverse]
        if turned and BOUNDARIES in self.tracks:
            raise UserError(
                f"{turned[0]} is read from the other strand, but the track {BOUNDARIES!r} holds on "
                "the strand it was made for alone; write + in the BED file"
            )

    def of(self, stretch: Stretch) -> Read:
        """A function (start, end) of the stretch's own bases, on its strand."""

        def read(start: int, end: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            low, high = stretch.start + start, stretch.start + end
            if stretch.reverse:
                low, high = stretch.end - end, stretch.end - start
            bases = self.reference.read(stretch.contig, low, high)
            values = {n: t.read(stretch.contig, low, high) for n, t in self.tracks.items()}
            if stretch.reverse:
                bases = reverse_complement(bases)
                values = {name: value[::-1].copy() for name, value in values.items()}
            if self.trained.upper_case:
                lower = (bases >= ord("a")) & (bases <= ord("z"))
                bases = np.where(lower, bases & np.uint8(0xDF), bases)
            ids = torch.from_numpy(bases.astype(np.int64))
            tracks = {name: torch.from_numpy(value) for name, value in values.items()}
            if self.typed:
                tracks[TYPE] = torch.full_like(ids, int(self.reference.kind))
            return ids, tracks

        return read


def _settings(
    trained: TrainedModel,
    options: EmbedOptions,
    layer: str,
    reference: Reference,
    bed: str | Path | None,
) -> dict[str, Any]:
    return {
        **{"format": FORMAT, "format_version": FORMAT_VERSION},
        **{"model": trained.name, "model_sha256": trained.digest},
        **{"sequences": reference.path.name, "sequences_sha256": reference.digest},
        "bed_sha256": None if bed is None else sha256_of(Path(bed)),
        **{"per": options.per, "chunk": options.bases, "layer": layer, "pool": options.pool},
        **{"dtype": options.dtype, "window": options.window},
        "without_tracks": options.without_tracks,
    }
