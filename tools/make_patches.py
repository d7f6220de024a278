"""Write where chunks open into a genome store, as its track `boundaries`.

    python -m tools.make_patches --store corpus/genome.zarr --entropy runs/small --keep 0.33
    python -m tools.make_patches --store corpus/genome.zarr --entropy runs/small --keep 0.33 0.1
    python -m tools.make_patches --store hg38/genome.zarr --track conservation

A chunk opens behind each base after which a small model's next-byte entropy (Pagnoni et al.,
arXiv:2412.09871), or the conservation of that base, exceeds a quantile over the store; see
megatron_hyena/corpus/patches.py. A second number in --keep is of the stage inside. For
model.merger=precomputed, by way of tools.make_shards --track boundaries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_hyena.corpus.patches import LevelCount, Series
    from megatron_hyena.data.store import Contig, GenomeStore
    from megatron_hyena.evaluation.entropy import Reader
    from megatron_hyena.model.hyena_glt import HyenaGLT

KEEP = [0.33]
CONTEXT_SHARE = 2
"""Windows overlap by one part in so many."""
BYTES_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Source:
    """What decides: a number per base, in `unit`, and what the track's attributes say of it."""

    series: Callable[[Contig], Series]
    unit: str
    told: dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns 0, or 2 after an error the user can mend."""
    arguments = _parser().parse_args(argv)
    from megatron_hyena.errors import UserError

    try:
        rows = make_patches(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in rows:
        print(f"{name:<16} {value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_patches",
        description="Write where chunks open into a genome store, as its track boundaries.",
    )
    parser.add_argument("--store", type=Path, required=True, help="genome.zarr of prepare_genome")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--entropy",
        type=Path,
        metavar="RUN_OR_FOLDER",
        help="by the next-byte entropy of this model: a run, a checkpoint or a saved model",
    )
    source.add_argument(
        "--track", metavar="NAME", help="by this track of the store, such as conservation"
    )
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument(
        "--keep",
        type=float,
        nargs="+",
        help="fraction of the bases at which chunks open, by level, the outermost stage's first "
        "(default: 0.33)",
    )
    limit.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        help="instead: the threshold of each level, in nats or in the track's unit",
    )
    parser.add_argument(
        "--rule",
        default="global",
        help="global: where the number exceeds the threshold (default); monotonic: where its rise "
        "since the base before does",
    )
    parser.add_argument("--length", type=int, help="window in bases (default: the run's)")
    parser.add_argument("--context", type=int, help="least context of a base (default: half of it)")
    parser.add_argument("--overwrite", action="store_true", help="replace a track that exists")
    return parser


def make_patches(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Write the track; returns what to print of it."""
    import tempfile

    import numpy as np

    from megatron_hyena.corpus.patches import levels, quantile_thresholds, scores
    from megatron_hyena.corpus.tracks import add_track, check_new_track
    from megatron_hyena.data.store import GenomeStore
    from megatron_hyena.data.tracks import BOUNDARIES

    check_numbers(arguments)
    store = GenomeStore.open(arguments.store)
    check_new_track(store, BOUNDARIES, overwrite=arguments.overwrite)
    source = _of_model(arguments, store) if arguments.entropy else _of_track(arguments, store)
    with tempfile.TemporaryFile(dir=store.path.parent) as file:
        scored = np.memmap(file, dtype=np.float32, mode="w+", shape=(store.total,))
        parts = {c.name: scored[c.start : c.start + c.length] for c in store.contigs}
        for contig in store.contigs:
            parts[contig.name][:] = scores(source.series(contig), arguments.rule)
        thresholds = arguments.threshold or quantile_thresholds(scored, arguments.keep or KEEP)
        counts = count_levels((levels(part, thresholds) for part in parts.values()), thresholds)
        told = {
            "kind": "levels that open a chunk",
            **source.told,
            "rule": arguments.rule,
            "thresholds": thresholds,
            "chunks": [count.chunks for count in counts],
        }
        add_track(
            store,
            BOUNDARIES,
            lambda contig: levels(parts[contig.name], thresholds),
            told,
            overwrite=arguments.overwrite,
        )
    return _rows(store, source, thresholds, counts)


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raise UserError for numbers that contradict each other, before anything is opened."""
    import math
    from itertools import pairwise

    from megatron_hyena.corpus.patches import MOST_LEVELS, RULES
    from megatron_hyena.errors import UserError

    keep, threshold = arguments.keep or KEEP, arguments.threshold or [0.0]
    for part in keep:
        if not 0 < part < 1:
            raise UserError(f"--keep {part} is not in (0, 1); it is the fraction of bases kept")
    for outer, inner in pairwise(keep):
        if not inner < outer:
            raise UserError(
                f"--keep {outer} {inner}: the stage inside keeps fewer bases than the one around "
                "it; give falling fractions"
            )
    for outer, inner in pairwise(threshold):
        if not inner > outer:
            raise UserError(f"--threshold {outer} {inner}: give rising thresholds")
    if not all(map(math.isfinite, threshold)) or max(len(keep), len(threshold)) > MOST_LEVELS:
        raise UserError(f"--threshold takes 1 to {MOST_LEVELS} finite numbers, as --keep does")
    if arguments.rule not in RULES:
        raise UserError(f"--rule {arguments.rule} is unknown; use {' or '.join(RULES)}")
    if arguments.track and (arguments.length or arguments.context):
        raise UserError(
            "--length and --context are of the model of --entropy; leave them out with --track"
        )


def _of_track(arguments: argparse.Namespace, store: GenomeStore) -> Source:
    """A track of numbers of the store."""
    from megatron_hyena.data.tracks import stored_dtype
    from megatron_hyena.errors import UserError

    track = store.track(arguments.track)
    if (dtype := stored_dtype(store, arguments.track)) != "float32":
        raise UserError(
            f"{store.path}: the track {arguments.track!r} holds {dtype} and cannot be compared "
            "with a threshold; name a track of numbers, such as conservation"
        )
    told = {"source": f"track {arguments.track}"}
    return Source(lambda contig: track.read(contig.name, 0, contig.length), "", told)


def _of_model(arguments: argparse.Namespace, store: GenomeStore) -> Source:
    """The entropy of a model's next byte; unknown behind a letter that is unknown."""
    from functools import partial

    import numpy as np

    from megatron_hyena.checkpoint.format import check_causal
    from megatron_hyena.data.alphabet import unknown_letters
    from megatron_hyena.data.atomic import sha256_of
    from megatron_hyena.data.tracks import BOUNDARIES, TYPE
    from megatron_hyena.evaluation.entropy import next_byte_entropy
    from megatron_hyena.observe.progress import progress
    from megatron_hyena.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    model, folder, data = _load(arguments.entropy)
    check_causal({"causal": model.config.causal}, folder, "the entropy of the next byte")
    length, context = _window(arguments, model, data.get("sequence_length"))
    names = [name for name in data.get("tracks", ()) if name not in (TYPE, BOUNDARIES)]
    held = {name: store.track(name) for name in names}

    def tracks(contig: Contig) -> dict[str, Reader]:
        found: dict[str, Reader] = {
            name: partial(track.read, contig.name) for name, track in held.items()
        }
        if model.types is not None:
            found[TYPE] = lambda start, end: np.full(end - start, store.type, dtype=np.int64)
        return found

    def series(contig: Contig) -> Series:
        with progress(description=contig.name, total=contig.length, unit="b") as bar:
            found = next_byte_entropy(
                lambda ids, beside: model(ids, tracks=beside).logits,
                lambda start, end: store.read(contig.name, start, end),
                contig.length,
                length,
                context,
                tracks=tracks(contig),
                batch_size=max(1, BYTES_AT_ONCE // length),
                watch=bar.update,
            )
        bases = store.read(contig.name, 0, contig.length)
        found[unknown_letters(store.type, bases)] = np.nan
        return found

    weights = {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}
    told = {"source": "entropy", "model": weights, "length": length, "context": context}
    return Source(series, "nats", told)


def _load(path: Path) -> tuple[HyenaGLT, Path, dict[str, Any]]:
    """A model, its folder, and the `data` section that it was trained with, if that is known."""
    from megatron_hyena.checkpoint.dense import load_dense
    from megatron_hyena.checkpoint.format import read_manifest
    from megatron_hyena.config.saved import CONFIG
    from megatron_hyena.model.hyena_glt import HyenaGLT

    if (path / CONFIG).is_file():
        return HyenaGLT.from_pretrained(path).eval(), path, {}
    model, folder = load_dense(path)
    return model, folder, read_manifest(folder).run["data"]


def _window(arguments: argparse.Namespace, model: HyenaGLT, trained: int | None) -> tuple[int, int]:
    """Length and context of the windows in which the model reads."""
    from megatron_hyena.errors import UserError

    length = arguments.length or trained
    if length is None:
        raise UserError(
            f"{arguments.entropy} does not tell the length that it was trained on; give --length"
        )
    most = model.config.longest_sequence
    if most is not None and length > most:
        raise UserError(f"--length {length} exceeds the model's max_sequence_length {most}")
    if model.stages and model.config.merger == "precomputed":
        raise UserError(
            f"{arguments.entropy} reads its own chunks from a track; give a model without merged "
            "stages, or of another merger"
        )
    context = arguments.context or max(1, length // CONTEXT_SHARE)
    if not 1 <= context <= length:
        raise UserError(f"--context {context} does not lie within 1 to --length {length}")
    return length, context


def count_levels(records: Any, thresholds: list[float]) -> list[LevelCount]:
    """Counts by level; `records` yields uint8 levels [n] of one after the other.

    Raises UserError for a level at which nothing opens but the records.
    """
    from itertools import pairwise

    from megatron_hyena.corpus.patches import LevelCount
    from megatron_hyena.errors import UserError

    counts, number = [LevelCount() for _ in thresholds], 0
    for record in records:
        number += 1
        for level, count in enumerate(counts):
            count.add(record > level)
    for outer, inner in pairwise(thresholds):
        if not inner > outer:
            raise UserError(
                f"two levels have the threshold {outer:g}, for many bases share that number; give "
                "fractions to --keep that lie further apart"
            )
    for threshold, count in zip(thresholds, counts, strict=True):
        if count.chunks == number:
            raise UserError(
                f"no base exceeds the threshold {threshold:g}, so no chunk opens; give a lower "
                "--threshold or more to --keep (where many bases share the largest number, "
                "more than they are)"
            )
    return counts


def _rows(
    store: GenomeStore, source: Source, thresholds: list[float], counts: list[LevelCount]
) -> list[tuple[str, str]]:
    """What is printed: each level's threshold, rate and lengths, and how to use them."""
    from megatron_hyena.corpus.patches import QUANTILES

    rows, around = [("bases", f"{store.total:,}")], 1.0
    for level, (threshold, count) in enumerate(zip(thresholds, counts, strict=True), start=1):
        lengths = count.length_quantiles()
        rows += [
            (f"level {level}", f"above {threshold:.4g} {source.unit}".rstrip()),
            ("  kept", f"{count.kept:.2%}, {count.chunks:,} chunks"),
            ("  lengths", ", ".join(f"{lengths[q]:,} ({q:.0%})" for q in QUANTILES)),
            ("  merge_ratio", f"{1 - count.kept / around:.3f}"),
        ]
        around = count.kept
    rows.append(("track", f"{store.path / 'tracks' / 'boundaries'}"))
    rows.append(("next", "tools.make_shards --track boundaries"))
    keys = "model.merger=precomputed data.tracks=[boundaries] data.reverse_complement=false"
    rows.append(("training", keys))
    return rows


if __name__ == "__main__":
    sys.exit(main())
