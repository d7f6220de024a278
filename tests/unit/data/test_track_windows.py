"""Tracks from the store to batches: against the genome and dense arrays read directly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.config import load_config, save_config
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SPLITS, SplitRule
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.data.alphabet import PAD, reverse_complement
from megatron_hyena.data.loader import evaluation_batches
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.window import Window
from megatron_hyena.data.windows import ChosenWindows, WindowStream, sequential_windows
from megatron_hyena.errors import UserError
from pretrain.data import open_data
from tools import make_shards

LENGTH = 1_042_519
BOTH = ("conservation", "boundaries")


def _gc_track(genome: bytes) -> tuple[str, np.ndarray]:
    """Share of G and C in stretches of 1 to 60 bases, every fourth untold: bedGraph and values."""
    draw = np.random.default_rng(0)
    values, rows, at = np.full(len(genome), np.nan, dtype=np.float32), [], 0
    while at < len(genome):
        end = min(len(genome), at + int(draw.integers(1, 61)))
        part = genome[at:end]
        share = (part.count(b"G") + part.count(b"C")) / len(part)
        if draw.random() < 0.75:
            rows.append(f"CHLTCG\t{at}\t{end}\t{share!r}\n")
            values[at:end] = share
        at = end
    return "".join(rows), values


@pytest.fixture(scope="module")
def genome(chlamydia_store) -> bytes:
    return chlamydia_store.read("CHLTCG", 0, LENGTH).tobytes()


@pytest.fixture(scope="module")
def truth(genome) -> dict[str, np.ndarray]:
    """Each track as one dense array over the chromosome."""
    return {
        "conservation": _gc_track(genome)[1],
        "boundaries": np.random.default_rng(1).random(LENGTH) < 0.2,
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory, chlamydia_files, genome, truth) -> GenomeStore:
    folder = tmp_path_factory.mktemp("tracks")
    (folder / "gc.bg").write_text(_gc_track(genome)[0])
    made = write_store(
        folder / "genome.zarr", chlamydia_files[:1], tracks={"conservation": folder / "gc.bg"}
    )
    add_track(made, "boundaries", lambda contig: truth["boundaries"], {})
    return GenomeStore.open(made.path)


@pytest.fixture(scope="module")
def shards(store) -> Path:
    """Several shards per split, so that runs cross them."""
    settings = ShardSettings(SplitRule(gap=4096), 29_999, 200_000, tracks=BOTH)
    write_shards(store, store.path.parent / "shards", settings)
    return store.path.parent / "shards"


def _same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_the_store_holds_the_dense_arrays(store, truth):
    assert store.tracks == ["boundaries", "conservation"]
    assert 0.7 < np.mean(~np.isnan(truth["conservation"])) < 0.8
    for name in BOTH:
        _same(store.track(name).read("CHLTCG", 0, LENGTH), truth[name])


def test_shards_and_their_index_list_the_tracks(shards, truth):
    import webdataset

    for split in SPLITS:
        index = ShardIndex.read(shards / split)
        assert index.tracks == {"conservation": "float32", "boundaries": "bool"}
        assert index.type == "dna"
        files = sorted(str(p) for p in (shards / split).glob("*.tar"))
        for sample in webdataset.WebDataset(files, shardshuffle=False):
            place = json.loads(sample["json"])
            part = slice(place["start"], place["end"])
            _same(np.frombuffer(sample["conservation"], "<f4"), truth["conservation"][part])
            _same(np.frombuffer(sample["boundaries"], np.bool_), truth["boundaries"][part])


def test_runs_read_tracks_across_pieces_and_shards(shards, truth):
    for split in SPLITS:
        (run,) = open_runs(shards / split)
        for start in (0, 1, 29_998, 29_999, run.length - 20_001):
            for length in (0, 1, 20_001):
                part = slice(run.start + start, run.start + start + length)
                for name in BOTH:
                    _same(run.read_track(name, start, start + length), truth[name][part])


def _place(genome: bytes, window: Window) -> tuple[int, bool]:
    """Where on the chromosome the window stands, and whether it was read from the other strand."""
    text = window.bases.tobytes()
    other = reverse_complement(window.bases).tobytes()
    forward, backward = genome.find(text), genome.find(other)
    assert (forward >= 0) != (backward >= 0)
    return max(forward, backward), backward >= 0


def test_windows_of_either_strand_bring_the_values_of_their_own_bases(shards, genome, truth):
    stream = WindowStream(
        shards / "train",
        700,
        seed=5,
        augment_reverse_complement=True,
        tracks=["conservation", "type"],
    )
    strands = set()
    for position in range(150):
        window = stream.window(position)
        start, turned = _place(genome, window)
        expected = truth["conservation"][start : start + 701]
        _same(window.tracks["conservation"], expected[::-1] if turned else expected)
        _same(window.tracks["type"], np.zeros(701, dtype=np.int64))
        strands.add(turned)
    assert strands == {True, False}


def test_asking_for_tracks_moves_no_window(shards):
    for stream_of in (WindowStream, PackedStream):
        plain, beside = (
            stream_of(shards / "valid", 512, 7, augment_reverse_complement=True, tracks=tracks)
            for tracks in ((), ("type", "conservation"))
        )
        for position in range(2 * plain.windows_per_epoch):
            one, other = plain.window(position), beside.window(position)
            assert one.bases.tobytes() == other.bases.tobytes()
            assert one.tracks == {}
            assert list(other.tracks) == ["type", "conservation"]


@pytest.mark.parametrize("context", [1, 250])
def test_validation_windows_and_their_padding(shards, genome, truth, context):
    windows = sequential_windows(shards / "test", 1000, context, tracks=["type", *BOTH])
    for index in (0, 1, 17, len(windows) - 1):
        window = windows.window(index)
        known = window.bases[window.bases != PAD].tobytes()
        start = genome.find(known)
        part = slice(start, start + len(known))
        missing = 1001 - len(known)
        unknown = np.full(missing, np.nan, dtype=np.float32)
        _same(window.tracks["conservation"], np.concatenate([truth["conservation"][part], unknown]))
        closed = np.zeros(missing, dtype=np.bool_)
        _same(window.tracks["boundaries"], np.concatenate([truth["boundaries"][part], closed]))
        _same(window.tracks["type"], np.zeros(1001, dtype=np.int64))
    assert missing > 0


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_batches_and_their_filler(shards, ranks):
    windows = ChosenWindows(sequential_windows(shards / "test", 1000, 1, tracks=BOTH), 7)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in BOTH}
    shares = [list(evaluation_batches(windows, 2, rank, ranks)) for rank in range(ranks)]
    for step in zip(*shares, strict=True):
        for batch in step:
            for name in BOTH:
                assert batch.tracks[name].shape == batch.input_ids.shape == (2, 1000)
                rows[name] += list(batch.tracks[name].numpy())
    assert len(rows["boundaries"]) > 7
    for name, found in rows.items():
        for i in range(7):
            _same(found[i], windows.window(i).tracks[name][:-1])
        for blank in found[7:]:
            assert np.isnan(blank).all() if name == "conservation" else not blank.any()


def test_a_track_that_the_shards_lack_is_refused_with_what_they_have(shards, chlamydia_shards):
    lacks = r"names 'phylop', which the shards in .*/train lack \(they have type, conservation, b"
    with pytest.raises(UserError, match=lacks):
        WindowStream(shards / "train", 512, seed=0, tracks=["phylop"])
    with pytest.raises(
        UserError, match=r"lack \(they have type, features\); .*make_shards --track c"
    ):
        PackedStream(chlamydia_shards / "train", 512, seed=0, tracks=["conservation"])
    with pytest.raises(UserError, match=r"names 'conservation', which the shards in .*/valid lack"):
        sequential_windows(chlamydia_shards / "valid", 512, 1, tracks=["conservation"])
    both = f"{shards / 'train'},{chlamydia_shards / 'valid'}"
    with pytest.raises(UserError, match=r"names 'conservation', which the shards in .*/valid lack"):
        WindowStream(both, 512, seed=0, tracks=["conservation"])


def test_boundaries_hold_on_one_strand_alone(shards):
    for stream_of in (WindowStream, PackedStream):
        with pytest.raises(UserError, match=r"'boundaries', which hold .*reverse_complement=false"):
            stream_of(
                shards / "train", 512, 0, augment_reverse_complement=True, tracks=["boundaries"]
            )
        stream_of(shards / "train", 512, 0, tracks=["boundaries"])


@pytest.fixture(scope="module")
def proteins(tmp_path_factory) -> Path:
    from megatron_hyena.data.alphabet import SequenceType

    folder = tmp_path_factory.mktemp("proteins")
    (folder / "p.fa").write_text(">p\n" + "MKWVTFISLL" * 60 + "\n")
    store = write_store(folder / "genome.zarr", [folder / "p.fa"], kind=SequenceType.PROTEIN)
    write_shards(store, folder / "shards", ShardSettings(SplitRule(0, 0)))
    return folder / "shards" / "train"


def test_proteins_beside_a_genome_need_no_conservation(shards, proteins):
    both = f"{shards / 'valid'},{proteins}"
    stream = PackedStream(both, 512, seed=0, tracks=["conservation", "type"])
    seen = set()
    for position in range(stream.windows_per_epoch):
        tracks = stream.window(position).tracks
        protein = tracks["type"] == 2
        assert np.isnan(tracks["conservation"][protein]).all()
        seen.add((bool(protein.any()), bool((~np.isnan(tracks["conservation"])).any())))
    assert {(False, True), (True, True)} & seen
    assert any(protein for protein, _ in seen)
    with pytest.raises(UserError, match=r"names 'boundaries', which the shards in .* lack"):
        PackedStream(both, 512, seed=0, tracks=["boundaries"])


def test_shards_of_tracks_that_cannot_be_written(tmp_path, store, chlamydia_store):
    with pytest.raises(UserError, match="has no track 'phylop'; it has"):
        write_shards(store, tmp_path / "s", ShardSettings(tracks=("phylop",)))
    with pytest.raises(UserError, match="may not be named 'features'"):
        ShardSettings(tracks=("features",))
    with pytest.raises(UserError, match="conservation conservation hold a name twice"):
        ShardSettings(tracks=("conservation", "conservation"))
    import zarr

    group = zarr.open_group(str(store.path), mode="a")
    group.create_array("tracks/counts", data=np.zeros(LENGTH, dtype=np.int32))
    try:
        reopened = GenomeStore.open(store.path)
        with pytest.raises(UserError, match="'counts' holds int32, not float32, bool, uint8"):
            write_shards(reopened, tmp_path / "s", ShardSettings(tracks=("counts",)))
    finally:
        del group["tracks/counts"]
    assert not (tmp_path / "s").exists()


def test_the_tool_writes_what_it_is_asked_for(tmp_path, store, capsys):
    command = ["--store", str(store.path), "--output", str(tmp_path / "shards")]
    assert make_shards.main([*command, "--track", "conservation"]) == 0
    assert "tracks: conservation" in capsys.readouterr().out
    assert ShardIndex.read(tmp_path / "shards" / "valid").tracks == {"conservation": "float32"}
    assert make_shards.main([*command, "--overwrite"]) == 0
    assert "tracks: none" in capsys.readouterr().out
    assert make_shards.main([*command, "--overwrite", "--track", "x"]) == 2
    assert "has no track 'x'" in capsys.readouterr().err


def test_the_configuration_chooses_the_tracks(tmp_path, shards, truth):
    places = [f"data.{name}={shards / name}" for name in ("train", "valid")]
    config = load_config(None, [*places, "data.tracks=[conservation, type]", "data.pack=true"])
    assert config.data.tracks == ("conservation", "type")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    data = open_data(config)
    assert list(data.train.window(0).tracks) == ["conservation", "type"]
    assert data.valid is not None
    _same(data.valid.window(0).tracks["conservation"], truth["conservation"][_valid(1025)])
    none = load_config(None, [*places, "data.tracks=[]"])
    assert open_data(none).train.window(0).tracks == {}
    (tmp_path / "run.yaml").write_text("data:\n  tracks: [boundaries]\n")
    strands = load_config(tmp_path / "run.yaml", places)
    with pytest.raises(UserError, match=r"set data\.reverse_complement=false"):
        open_data(strands)
    with pytest.raises(UserError, match=r"data\.tracks names 'type' twice; keep one"):
        load_config(None, ["data.tracks=type,type"])


def _valid(length: int) -> slice:
    start = LENGTH - 2 * 52_126 - 4096
    return slice(start, start + length)
