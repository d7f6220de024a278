"""Tracks of packed windows and of batches: against values laid by hand, on any ranks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.data.batch import Batch
from megatron_hyena.data.loader import BatchIterator, micro_batches
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.sealed import seal, unseal
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.errors import UserError
from tests.oracles.window_order import laid_runs, laid_windows


def _same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def many(tmp_path_factory, random_contigs) -> tuple[Path, list[bytes], list[np.ndarray]]:
    """Shards of short contigs with a track; the contigs; their values."""
    folder = tmp_path_factory.mktemp("many")
    contigs = random_contigs(205, 1, 20, 2, 95, 1, 1, 60, 7, 150, 3)
    draw = np.random.default_rng(2)
    values = [draw.normal(size=len(c)).astype(np.float32) for c in contigs]
    for one in values:
        one[draw.random(len(one)) < 0.3] = np.nan
    (folder / "a.fa").write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(contigs)))
    store = write_store(folder / "genome.zarr", [folder / "a.fa"])
    by_name = {f"c{i}": one for i, one in enumerate(values)}
    add_track(store, "conservation", lambda contig: by_name[contig.name], {})
    settings = ShardSettings(SplitRule(0, 0), 60, 120, tracks=("conservation",))
    write_shards(GenomeStore.open(store.path), folder / "shards", settings)
    return folder / "shards" / "train", contigs, values


@pytest.mark.parametrize("both_strands", [False, True])
def test_packed_windows_against_tracks_laid_by_hand(many, both_strands):
    folder, contigs, values = many
    stream = PackedStream(
        folder,
        20,
        seed=5,
        augment_reverse_complement=both_strands,
        tracks=["conservation"],
    )
    turned = 0
    for epoch in range(4):
        laid = []
        for number, drawn in laid_runs(len(values), 5, epoch):
            reverse = both_strands and drawn
            laid.append(values[number][::-1] if reverse else values[number])
            turned += reverse
        string = np.concatenate(laid).tolist()
        assert len(string) == sum(map(len, contigs))
        windows = laid_windows(string, 20, 5, epoch, np.nan)
        assert len(windows) == stream.windows_per_epoch
        for shown, expected in enumerate(windows):
            window = stream.window(epoch * len(windows) + shown)
            _same(window.tracks["conservation"], np.array(expected, dtype=np.float32))
    assert (turned > 0) == both_strands


def _tracks(batches: list[Batch]) -> dict[str, np.ndarray]:
    names = batches[0].tracks
    return {name: torch.cat([b.tracks[name] for b in batches]).numpy() for name in names}


def _sorts(folder: Path) -> list[WindowStream | PackedStream]:
    make: list[Callable[..., WindowStream | PackedStream]] = [WindowStream, PackedStream]
    return [
        one(folder, 20, seed=6, augment_reverse_complement=True, tracks=["type", "conservation"])
        for one in make
    ]


def test_batches_hold_the_values_of_their_inputs(many):
    for stream in _sorts(many[0]):
        for step in range(10):
            (batch,) = micro_batches(stream, step, 3, 3, 0, 1)
            assert batch.tracks["type"].dtype == torch.int64
            assert batch.tracks["conservation"].dtype == torch.float32
            for row in range(3):
                window = stream.window(3 * step + row)
                for name in ("type", "conservation"):
                    found = batch.tracks[name]
                    assert found.shape == batch.input_ids.shape == (3, 20)
                    assert found.is_contiguous()
                    _same(found[row].numpy(), window.tracks[name][:-1])


def test_ranks_together_see_the_same_tracks_and_resume_them(many):
    for stream in _sorts(many[0]):
        whole = _tracks(micro_batches(stream, 3, 12, 12, 0, 1))
        shares = [_tracks(micro_batches(stream, 3, 12, 2, rank, 3)) for rank in range(3)]
        for name, expected in whole.items():
            _same(np.concatenate([share[name] for share in shares]), expected)
        with BatchIterator(stream, 3, global_batch_size=12, micro_batch_size=12) as batches:
            ((_, share),) = islice(batches, 1)
        _same(_tracks(share)["conservation"], whole["conservation"])


def test_batches_move_their_tracks(many):
    (batch,) = micro_batches(_sorts(many[0])[1], 0, 2, 2, 0, 1)
    moved = batch.to("meta")
    assert {name: t.device.type for name, t in moved.tracks.items()} == {
        "type": "meta",
        "conservation": "meta",
    }
    (plain,) = micro_batches(WindowStream(many[0], 20, seed=6), 0, 2, 2, 0, 1)
    assert plain.tracks == {}
    assert plain.to("meta").tracks == {}


def test_one_name_of_two_kinds_is_refused(tmp_path, many):
    folder, contigs, _ = many
    store = GenomeStore.open(folder.parents[1] / "genome.zarr")
    marks = {c.name: np.zeros(c.length, dtype=np.bool_) for c in store.contigs}
    (tmp_path / "a.fa").write_bytes(b">c0\n%s\n" % contigs[0])
    other = write_store(tmp_path / "genome.zarr", [tmp_path / "a.fa"])
    add_track(other, "conservation", lambda contig: marks["c0"], {})
    settings = ShardSettings(SplitRule(0, 0), tracks=("conservation",))
    write_shards(GenomeStore.open(other.path), tmp_path / "shards", settings)
    with pytest.raises(UserError, match="'conservation' is bool and float32 in different folders"):
        WindowStream(f"{folder},{tmp_path / 'shards/train'}", 20, 0, tracks=["conservation"])


def test_an_index_that_contradicts_itself_is_refused(tmp_path, many):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in many[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    index = unseal((folder / "index.json").read_bytes())
    taken = index["shards"][0]["samples"][0].pop("tracks")
    (folder / "index.json").write_bytes(seal(index))
    with pytest.raises(UserError, match=r"index\.json is damaged \(a sample has other tracks"):
        open_runs(folder)
    index["shards"][0]["samples"][0]["tracks"] = taken
    (folder / "index.json").write_bytes(seal({**index, "tracks": {"conservation": "float16"}}))
    with pytest.raises(UserError, match=r"index\.json has a track of 'float16', not float32, bool"):
        open_runs(folder)
