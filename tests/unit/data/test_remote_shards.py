"""Runs of a store's shards read what runs of a folder read; corrupt shards stop or are counted."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil

import numpy as np
import pytest

from megatron_hyena.data.alphabet import PAD
from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.data.loader import micro_batches
from megatron_hyena.data.remote import Retry
from megatron_hyena.data.remote_errors import UnreachableError
from megatron_hyena.data.shard_cache import ShardCache
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.sources import ShardSource
from megatron_hyena.data.windows import SequentialWindows, WindowStream
from megatron_hyena.errors import UserError
from tests.oracles.stores import WebFolder

pytestmark = pytest.mark.smoke

QUICK = Retry(attempts=3, first=0.01)


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", retry=QUICK)


@pytest.fixture(scope="module")
def local(shards_of, random_contigs):
    """Two contigs of 20 pieces in 10 shards and more."""
    return shards_of(random_contigs(1000, 333))


@pytest.fixture
def stored(bucket, local):
    return bucket.put_folder(local, "corpus/train")


def same(remote, local) -> None:
    assert [(r.contig, r.start, r.length, r.type) for r in remote] == [
        (r.contig, r.start, r.length, r.type) for r in local
    ]
    generator = np.random.default_rng(5)
    for one, other in zip(remote, local, strict=True):
        for _ in range(50):
            start, end = sorted(generator.integers(0, one.length + 1, 2).tolist())
            assert np.array_equal(one.read(start, end), other.read(start, end))


def test_a_bucket_reads_as_its_folder(stored, local, cache, bucket):
    runs = open_runs(ShardSource(stored, cache))
    assert len(list(local.glob("*.tar"))) > 5
    assert bucket.trouble.times(".tar") == 0  # nothing is fetched before it is read
    assert runs[0].read(5, 5).dtype == np.uint8
    assert len(runs[0].read(10, 60)) == 50
    assert bucket.trouble.times(".tar") == 1
    same(runs, open_runs(local))
    assert bucket.trouble.times(".tar") == len(list(local.glob("*.tar")))


def test_a_web_folder_reads_as_its_folder(local, cache):
    with WebFolder(local.parent) as web:
        same(open_runs(ShardSource(f"{web.url}/train/", cache)), open_runs(local))
        one = open_runs(ShardSource(f"{web.url}/train/shard-000000.tar", cache))
        same(one, open_runs(local / "shard-000000.tar"))
        with pytest.raises(UserError, match=r"valid has no index\.json; name a folder"):
            open_runs(ShardSource(f"{web.url}/valid", cache))


def test_names_globs_and_mixtures(stored, local, cache, bucket):
    def runs(name: str):
        return open_runs(ShardSource(name, cache))

    same(runs(f"{bucket.url}/*/train"), open_runs(local))
    same(runs(f"{stored}/shard-00000[12].tar"), open_runs(f"{local}/shard-00000[12].tar"))
    same(runs(f"{stored}, {local}"), [*open_runs(local), *open_runs(local)])
    with pytest.raises(UserError, match=r"names .*train twice"):
        runs(f"{stored},{stored}/")
    with pytest.raises(UserError, match="matches no shards"):
        runs(f"{bucket.url}/*/test")
    with pytest.raises(UserError, match=r"test has no index\.json"):
        runs(f"{bucket.url}/corpus/test")
    with pytest.raises(UserError, match=r"strange\.tar is not in the folder's index"):
        bucket.put("corpus/train/strange.tar", b"x")
        runs(f"{stored}/*.tar")


def test_an_index_that_comes_damaged_is_asked_for_again(stored, local, cache, bucket):
    bucket.trouble.plan("index.json", "503", "short")
    same(open_runs(ShardSource(stored, cache)), open_runs(local))
    bucket.put("corpus/train/index.json", b'{"format": "megatron')
    with pytest.raises(UserError, match=r"s3://.*index\.json is damaged"):
        open_runs(ShardSource(stored, cache))


def test_tracks_come_with_their_bases(bucket, cache, tmp_path):
    from megatron_hyena.corpus.prepare import write_store
    from megatron_hyena.corpus.shards import ShardSettings, write_shards
    from megatron_hyena.corpus.splits import SplitRule
    from megatron_hyena.corpus.tracks import add_track
    from megatron_hyena.data.store import GenomeStore

    fasta = tmp_path / "a.fa"
    fasta.write_bytes(b">a\n" + b"ACGT" * 100 + b"\n")
    store = write_store(tmp_path / "genome.zarr", [fasta])
    values = np.random.default_rng(0).random(400, dtype=np.float32)
    add_track(store, "conservation", lambda contig: values, {})
    store = GenomeStore.open(store.path)
    settings = ShardSettings(
        SplitRule(0, 0), piece_length=30, shard_size=60, tracks=("conservation",)
    )
    write_shards(store, tmp_path / "shards", settings)
    url = bucket.put_folder(tmp_path / "shards" / "train", "train")
    (run,) = open_runs(ShardSource(url, cache))
    assert np.array_equal(run.read_track("conservation", 17, 333), values[17:333])
    stream = WindowStream(ShardSource(url, cache), 50, 0, tracks=["conservation"])
    assert stream.window(0).tracks["conservation"].dtype == np.float32

    corrupt = CorruptShards("skip")
    bucket.put("train/shard-000001.tar", b"")
    shutil.rmtree(cache.folder)
    (run,) = open_runs(ShardSource(url, cache, corrupt))
    expected = values.copy()
    expected[60:120] = np.nan
    found = run.read_track("conservation", 0, 400)
    assert np.array_equal(found, expected, equal_nan=True)
    assert corrupt.reads == 0  # bases alone are counted
    assert (run.read(0, 400)[60:120] == PAD).all()


def test_prefetch_fetches_what_lies_under_the_bases(stored, cache, bucket):
    import time

    run = open_runs(ShardSource(stored, cache))[0]
    run.prefetch(130, 270)
    deadline = time.monotonic() + 30
    while bucket.trouble.times(".tar") < 2 or cache._threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    names = {f"shard-00000{i}.tar" for i in (1, 2)}
    assert {one.rpartition("/")[2] for one in bucket.trouble.asked if ".tar" in one} == names
    run.read(130, 270)
    assert bucket.trouble.times(".tar") == 2


def test_prefetch_of_a_folder_does_nothing(local):
    open_runs(local)[0].prefetch(0, 500)


def damage(folder, kind: str, number: int = 3) -> str:
    """Damage a shard of a folder; returns its name."""
    name = f"shard-{number:06d}.tar"
    path = folder / name
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        content[700] ^= 1
    elif kind == "shortened":
        del content[-1:]
    if kind == "missing":
        path.unlink()
    else:
        path.write_bytes(content)
    return name


def bases_of(folder, number: int = 3) -> list[tuple[str, int, int]]:
    index = json.loads((folder / "index.json").read_text())
    return [(s["contig"], s["start"], s["end"]) for s in index["shards"][number]["samples"]]


@pytest.mark.parametrize("where", ["folder", "s3", "http"])
@pytest.mark.parametrize("kind", ["flipped", "shortened", "missing"])
def test_a_corrupt_shard_stops_or_is_padding(where, kind, local, tmp_path, bucket, cache):
    broken = tmp_path / "broken"
    shutil.copytree(local, broken)
    name = damage(broken, kind)
    web = WebFolder(broken)
    place = {"folder": str(broken), "http": web.url, "s3": bucket.put_folder(broken, "broken")}
    with web, pytest.raises(UserError, match=name):
        for run in open_runs(ShardSource(place[where], cache)):
            run.read(0, run.length)

    corrupt = CorruptShards("skip")
    with WebFolder(broken) as web:
        place["http"] = web.url
        runs = open_runs(ShardSource(place[where], cache, corrupt))
        found = [run.read(0, run.length) for run in runs]
        lost = bases_of(local)
        for run, bases, whole in zip(runs, found, open_runs(local), strict=True):
            expected = whole.read(0, whole.length)
            for contig, start, end in lost:
                if contig == run.contig:
                    expected[start:end] = PAD
            assert np.array_equal(bases, expected)
        assert corrupt.summary() == {
            "corrupt_shards": [f"{place[where]}/{name}"],
            "skipped_windows": 1,
            "skipped_bases": sum(end - start for _, start, end in lost),
        }
        runs[0].read(0, 100)  # of other shards
        assert corrupt.reads == 1


def test_skipping_changes_neither_order_nor_number_of_windows(local, tmp_path):
    """Weights of the missing bases are 0, and all else is as it was, resumed or not."""
    broken = tmp_path / "broken"
    shutil.copytree(local, broken)
    damage(broken, "flipped")
    corrupt = CorruptShards("skip")
    whole = WindowStream(local, 40, 7, augment_reverse_complement=True)
    holed = WindowStream(
        ShardSource(broken, corrupt=corrupt), 40, 7, augment_reverse_complement=True
    )
    assert whole.windows_per_epoch == holed.windows_per_epoch
    touched = 0
    for position in range(2 * whole.windows_per_epoch):
        expected, found = whole.window(position).bases, holed.window(position).bases
        lost = found != expected
        assert (found[lost] == PAD).all()
        touched += bool(lost.any())
    assert corrupt.reads == touched > 0
    for step in range(whole.windows_per_epoch):
        (batch,) = micro_batches(holed, step, 1, 1, 0, 1)
        assert (batch.weights[batch.targets == PAD] == 0).all()
        assert (batch.weights[batch.targets != PAD] == 1).all()


def test_an_outage_is_not_blamed_on_a_shard(stored, cache, bucket):
    """A store that fails for one shard alone has lost it; one that fails for all is down."""
    corrupt = CorruptShards("skip")
    run = open_runs(ShardSource(stored, cache, corrupt))[0]
    bucket.trouble.plan("shard-000000.tar", "503*")
    assert (run.read(0, 10) == PAD).all()
    assert list(corrupt.shards) == [f"{stored}/shard-000000.tar"]
    bucket.trouble.plan("corpus/train", "503*")
    with pytest.raises(UnreachableError, match=r"shard-000001\.tar: no success in 3"):
        run.read(150, 160)
    assert len(corrupt.shards) == 1


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_nothing_left_is_no_corpus(where, local, tmp_path, bucket, cache):
    broken = tmp_path / "broken"
    shutil.copytree(local, broken)
    count = len(list(broken.glob("*.tar")))
    for number in range(count):
        damage(broken, "missing", number)
    source = str(broken) if where == "folder" else bucket.put_folder(broken, "broken")
    corrupt = CorruptShards("skip")
    with pytest.raises(UserError, match=f"none of {count} shards is left with data.on_corrupt"):
        for run in open_runs(ShardSource(source, cache, corrupt)):
            run.read(0, run.length)
    assert len(corrupt.shards) == count

    corrupt = CorruptShards("skip")  # of a mixture, opened twice, the other part is left
    for _ in range(2):
        runs = open_runs(ShardSource(f"{local},{source}", cache, corrupt))
        assert (runs[-1].read(0, 10) == PAD).all()


def test_what_is_refused_or_misspelt_always_stops(stored, cache, bucket):
    run = open_runs(ShardSource(stored, cache, CorruptShards("skip")))[0]
    bucket.trouble.plan("shard-000000.tar", "403*")
    with pytest.raises(UserError, match="the store refuses"):
        run.read(0, 10)
    with pytest.raises(UserError, match="'ignore' is unknown; use stop or skip"):
        CorruptShards("ignore")


def test_evaluation_reads_a_store(stored, local, cache):
    found = SequentialWindows(ShardSource(stored, cache), 64, 32)
    expected = SequentialWindows(local, 64, 32)
    for (bases, weights), (wanted, wanted_weights) in zip(found, expected, strict=True):
        assert np.array_equal(bases, wanted)
        assert np.array_equal(weights, wanted_weights)


def _read_all(runs, answers) -> None:
    answers.put([run.read(0, run.length).tobytes() for run in runs])


def test_a_forked_process_reads_a_store_that_its_parent_reads(stored, local, cache):
    """Clients of the parent, with their threads and connections, are not the child's."""
    context = multiprocessing.get_context("fork")
    runs = open_runs(ShardSource(stored, cache))
    runs[0].read(0, 10)
    answers = context.SimpleQueue()
    child = context.Process(target=_read_all, args=(runs, answers), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert answers.get() == [run.read(0, run.length).tobytes() for run in open_runs(local)]
    same(runs, open_runs(local))


def test_runs_of_a_store_can_be_sent_to_another_process(stored, local, cache):
    runs = open_runs(ShardSource(stored, cache))
    runs[0].read(0, 10)
    sent = pickle.dumps(runs)
    assert len(sent) < 30_000
    same(pickle.loads(sent), open_runs(local))
    source = pickle.loads(pickle.dumps(ShardSource(stored, cache)))
    assert (str(source), source.cache.folder) == (stored, cache.folder)
