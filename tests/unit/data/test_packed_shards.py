"""Shards that are gzip: the same stream, unpacked once, and every way they can be damaged."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
import webdataset

from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.data.shard_cache import ShardCache
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.sources import ShardSource
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.errors import UserError


@pytest.fixture(scope="module")
def folders(chlamydia_store: GenomeStore, tmp_path_factory) -> dict[bool, Path]:
    """Shards of the shipped genome, plain and packed."""
    found = {}
    for packed in (False, True):
        folder = tmp_path_factory.mktemp("packed") / "shards"
        settings = ShardSettings(SplitRule(gap=4096), 30_000, 300_000, compress=packed)
        write_shards(chlamydia_store, folder, settings)
        found[packed] = folder / "train"
    return found


def _source(folder: Path, cache: Path, policy: str = "stop") -> ShardSource:
    return ShardSource(folder, ShardCache(cache), CorruptShards(policy))


def test_packed_shards_give_the_same_stream_from_a_third_of_the_bytes(folders, tmp_path):
    plain, packed = (ShardIndex.read(folders[kind]) for kind in (False, True))
    for one, other in zip(plain.shards, packed.shards, strict=True):
        assert other.file == f"{one.file}.gz"
        assert (other.unpacked_bytes, other.unpacked_sha256) == (one.bytes, one.sha256)
        assert other.bytes < 0.35 * sum(sample.end - sample.start for sample in one.samples)
        assert other.samples == one.samples
    streams = [
        WindowStream(folders[False], 512, 3),
        WindowStream(_source(folders[True], tmp_path), 512, 3),
    ]
    for position in range(0, streams[0].windows_per_epoch, 5):
        assert len({stream.window(position).bases.tobytes() for stream in streams}) == 1
    copies = sorted(path.name for path in tmp_path.glob("*.tar"))
    assert copies == sorted(f"{shard.sha256}.tar" for shard in plain.shards)
    again = {path: path.stat().st_mtime_ns for path in folders[True].iterdir()}
    WindowStream(_source(folders[True], tmp_path), 512, 3).window(0)
    assert again == {path: path.stat().st_mtime_ns for path in folders[True].iterdir()}


def test_other_readers_open_them(folders):
    names = sorted(map(str, folders[True].glob("*.tar.gz")))
    samples = list(webdataset.WebDataset(names, shardshuffle=False))
    index = ShardIndex.read(folders[True])
    assert sum(len(sample["bases"]) for sample in samples) == index.bases
    with tarfile.open(names[0]) as tar:
        assert len(tar.getnames()) == 2 * len(index.shards[0].samples)


@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
@pytest.mark.parametrize("verify", [True, False])
def test_damage_is_found_before_or_when_it_is_unpacked(folders, tmp_path, change, verify):
    folder = tmp_path / "train"
    shutil.copytree(folders[True], folder)
    path = sorted(folder.glob("*.tar.gz"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(content if change == "flip" else content[:-100])

    def read_all(policy: str) -> ShardSource:
        source = _source(folder, tmp_path / "cache", policy)
        stream = WindowStream(source, 512, 3, verify=verify)
        for position in range(stream.windows_per_epoch):
            stream.window(position)
        return source

    with pytest.raises(UserError, match=rf"{path.name}.* (is damaged|has \d+ bytes|missing)"):
        read_all("stop")
    source = read_all("skip")
    assert list(source.corrupt.shards) == [str(path)]
    assert source.corrupt.reads > 0
