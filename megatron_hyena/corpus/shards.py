"""From a genome store to WebDataset shards of long pieces.

    shards/train/shard-000000.tar   members KEY.bases (raw bytes, one per base) and KEY.json
                                    (contig, start, end, split), and KEY.NAME of each track
                                    asked for (little-endian float32, or one byte per mark)
    shards/train/index.json         see shard_index.py
    shards/valid/…  shards/test/…

Neighbouring pieces of a contig abut, so a reader may run windows across them. A piece that holds
nothing but N (of protein: X) is left out. The same store and settings give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_hyena import __version__
from megatron_hyena.corpus.labels import LEGEND
from megatron_hyena.corpus.pieces import Portion, cut_pieces, fill_shards, shard_name
from megatron_hyena.corpus.shard_writer import Layers, write_shard
from megatron_hyena.corpus.splits import SplitRule, Stretch, split_contigs
from megatron_hyena.data.atomic import atomic_folder
from megatron_hyena.data.shard_index import INDEX_FILE, Shard, ShardIndex
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.tracks import FEATURES, check_track_name, stored_dtype
from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class ShardSettings:
    """How pieces and tar files are cut. Raises UserError for lengths that are not positive."""

    rule: SplitRule = field(default_factory=SplitRule)
    piece_length: int = 1 << 17
    """Bases of one sample."""
    shard_size: int = 1 << 26
    """Bases of one tar file, at most (but one piece at least)."""
    features: bool = False
    """Also write the labels, `tracks/features`."""
    tracks: tuple[str, ...] = ()
    """Names of the tracks to write beside the bases."""
    compress: bool = False
    """Write .tar.gz, a third of the size or less, which training unpacks into its cache."""

    def __post_init__(self) -> None:
        for name in self.tracks:
            check_track_name(name)
        if len(set(self.tracks)) < len(self.tracks):
            raise UserError(f"the tracks {' '.join(self.tracks)} hold a name twice; keep one")
        if self.piece_length < 1 or self.shard_size < 1:
            raise UserError("the piece length and the shard size must be 1 base or more")

    @property
    def written(self) -> tuple[str, ...]:
        """Names of all tracks that are written, the labels among them."""
        return (*self.tracks, *((FEATURES,) if self.features else ()))


def write_shards(
    store: GenomeStore,
    output: Path,
    settings: ShardSettings,
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] = lambda bases: None,
    finished: Callable[[Path, Shard], object] = lambda path, shard: None,
) -> dict[str, ShardIndex]:
    """Write `output` (a folder, it appears whole); returns the index of each split.

    `progress` is told the bases of each piece. `finished` is told each tar file, SPLIT/NAME in
    the folder as it is being written, as soon as it is whole, and may take it away.

    Raises UserError where `output` exists already, where a split would get no bases, and where
    features or a track are asked of a store without them.
    """
    stretches = split_contigs(store.contigs, settings.rule)
    for split in settings.rule.splits:
        if not any(stretch.split == split for stretch in stretches):
            raise _no_bases(split, store)
    for name in settings.written:
        stored_dtype(store, name)
    indices: dict[str, ShardIndex] = {}
    with atomic_folder(output, marker=f"train/{INDEX_FILE}", overwrite=overwrite) as partial:
        for split in settings.rule.splits:
            folder = partial / split
            folder.mkdir()
            chosen = [stretch for stretch in stretches if stretch.split == split]
            index = _write_split(store, folder, split, chosen, settings, progress, finished)
            if index.bases == 0:
                raise _no_bases(split, store)
            indices[split] = index
    return indices


def _no_bases(split: str, store: GenomeStore) -> UserError:
    option = "--gap" if split == "train" else f"--gap, or --{split}-fraction 0"
    longest = max(contig.length for contig in store.contigs)
    return UserError(
        f"{store.path}: the {split} split gets no bases (the longest contig has {longest}); "
        f"give a smaller {option}"
    )


def _write_split(
    store: GenomeStore,
    folder: Path,
    split: str,
    stretches: Sequence[Stretch],
    settings: ShardSettings,
    progress: Callable[[int], object],
    finished: Callable[[Path, Shard], object],
) -> ShardIndex:
    """Write one tar file after another, and the index."""
    numbers = {contig.name: number for number, contig in enumerate(store.contigs)}
    portions = (Portion("", numbers[s.contig], s.contig, s.start, s.end) for s in stretches)
    tracks = {name: stored_dtype(store, name) for name in settings.written}
    layers = Layers(tracks)
    pieces = cut_pieces(split, portions, settings.piece_length)
    shards = []
    for i, some in enumerate(fill_shards(pieces, settings.shard_size)):
        path = folder / shard_name(i, compress=settings.compress)
        shards.append(write_shard(path, split, some, lambda _: store, layers, progress))
        finished(path, shards[-1])
    index = ShardIndex(
        split=split,
        bases=sum(sample.end - sample.start for shard in shards for sample in shard.samples),
        gap=settings.rule.gap,
        shards=tuple(shards),
        type=store.type.name.lower(),
        tracks=tracks,
        labels=LEGEND if settings.features else {},
        provenance=_provenance(store, settings),
    )
    index.write(folder)
    return index


def _provenance(store: GenomeStore, settings: ShardSettings) -> dict[str, Any]:
    """What the shards are made of; see `ShardIndex.provenance`."""
    options = {**asdict(settings), "tracks": list(settings.tracks)}
    return {
        "tool_version": __version__,
        "sources": store.attributes["sources"],
        "options": options,
    }
