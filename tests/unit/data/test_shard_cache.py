"""Shards are copied once per machine, whole, within a bound, and never other bytes than asked."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest

from megatron_hyena.data.corrupt import CorruptShards
from megatron_hyena.data.fetch import DamagedError, fetch, place_of
from megatron_hyena.data.remote import Retry
from megatron_hyena.data.remote_errors import UnreachableError
from megatron_hyena.data.shard_cache import ShardCache, ShardFile, default_cache_folder
from megatron_hyena.data.shard_index import Shard
from megatron_hyena.errors import UserError
from megatron_hyena.runtime.lock import exclusive
from tests.oracles.stores import Trouble, WebFolder

QUICK = Retry(attempts=3, first=0.01)
SIZE = 100_000


@pytest.fixture
def web(tmp_path):
    """(url of shard i, its bytes, the proxy): five shards on a web server."""
    folder = tmp_path / "web"
    folder.mkdir()
    contents = [np.random.default_rng(i).bytes(SIZE) for i in range(5)]
    for i, content in enumerate(contents):
        (folder / f"s{i}.tar").write_bytes(content)
    with WebFolder(folder) as server, Trouble(server.port) as trouble:
        yield (lambda i: f"{trouble.url}/s{i}.tar"), contents, trouble


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def files(web, tmp_path):
    """`files(gigabytes)`: the cache and the five shards in it."""
    url, contents, _ = web

    def make(gigabytes: float = 0.0, verify: bool = True):
        cache = ShardCache(tmp_path / "cache", gigabytes, retry=QUICK)
        shards = [Shard(f"s{i}.tar", SIZE, sha256(c), ()) for i, c in enumerate(contents)]
        return cache, [
            ShardFile(url(i), shard, cache, CorruptShards(), verify=verify)
            for i, shard in enumerate(shards)
        ]

    return make


def kept(folder) -> set[str]:
    return {path.stem for path in folder.glob("*.tar")}


def _fetch_in_a_process(arguments):
    url, folder, digest = arguments
    return fetch(url, folder, bytes=SIZE, sha256=digest, retry=QUICK).read_bytes()


def test_processes_that_want_the_same_shard_fetch_it_once(web, tmp_path):
    url, contents, trouble = web
    trouble.plan("s0.tar", "503")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        wanted = [(url(0), tmp_path / "cache", sha256(contents[0]))] * 6
        assert set(pool.map(_fetch_in_a_process, wanted, chunksize=1)) == {contents[0]}
    assert trouble.times("s0.tar") == 2


def test_threads_that_want_the_same_shard_fetch_it_once(web, files):
    _, contents, trouble = web
    _, (file, *_) = files()
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(file.content.tobytes())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [contents[0]] * 8
    assert trouble.times("s0.tar") == 1


def test_what_a_killed_process_left_is_gone_on_with(web, tmp_path):
    url, contents, trouble = web
    folder = tmp_path / "cache"
    folder.mkdir()
    partial = place_of(folder, sha256(contents[0])).with_suffix(".partial")
    for left in (contents[0][:70_000], contents[0] + b"more", b"other" * 1000):
        partial.write_bytes(left)
        path = fetch(url(0), folder, bytes=SIZE, sha256=sha256(contents[0]), retry=QUICK)
        assert path.read_bytes() == contents[0]
        assert not partial.exists()
        path.unlink()
    assert trouble.times("s0.tar") == 1 + 1 + 2  # the wrong beginning is found out at the end


def test_a_byte_flipped_on_its_way_is_fetched_again(web, tmp_path, capfd):
    url, contents, trouble = web
    trouble.plan("s0.tar", "flip")
    path = fetch(url(0), tmp_path / "c", bytes=SIZE, sha256=sha256(contents[0]), retry=QUICK)
    assert path.read_bytes() == contents[0]
    assert "attempt 1 of 2 gave bytes of another SHA-256" in capfd.readouterr().err


def test_a_damaged_shard_is_named_and_leaves_nothing(web, tmp_path):
    url, contents, trouble = web
    trouble.plan("s0.tar", "flip*")
    with pytest.raises(DamagedError, match=r"s0\.tar is damaged: its SHA-256"):
        fetch(url(0), tmp_path / "c", bytes=SIZE, sha256=sha256(contents[0]), retry=QUICK)
    assert not [p for p in (tmp_path / "c").iterdir() if p.is_file()]


def test_any_trouble_gives_the_right_bytes_or_an_error(web, tmp_path):
    url, contents, trouble = web
    generator, ended = np.random.default_rng(11), []
    kinds = ["", "500", "503", "cut", "short", "flip", "refuse"]
    for number in range(40):
        trouble.plan("s0.tar", *generator.choice(kinds, generator.integers(1, 9)).tolist())
        folder = tmp_path / f"cache{number}"
        try:
            path = fetch(url(0), folder, bytes=SIZE, sha256=sha256(contents[0]), retry=QUICK)
            assert path.read_bytes() == contents[0]
            ended.append("whole")
        except UserError as error:
            assert str(error).startswith(url(0))
            assert not kept(folder)
            ended.append("error")
    assert set(ended) == {"whole", "error"}


def test_kills_at_any_moment_leave_nothing_wrong(tmp_path):
    """The copy is right, or not there; whoever comes next makes it right."""
    content = np.random.default_rng(1).bytes(30_000_000)
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "x.tar").write_bytes(content)
    wanted: dict[str, Any] = {"bytes": len(content), "sha256": sha256(content), "retry": QUICK}
    left: list[int] = []
    context = multiprocessing.get_context("fork")
    with WebFolder(tmp_path / "web") as web:
        for number in range(12):
            folder = tmp_path / f"cache{number}"
            child = context.Process(
                target=fetch, args=(f"{web.url}/x.tar", folder), kwargs=wanted, daemon=True
            )
            child.start()
            time.sleep(0.02 + 0.01 * number)
            child.kill()
            child.join()
            assert all(path.read_bytes() == content for path in folder.glob("*.tar"))
            left += [path.stat().st_size for path in folder.glob("*.partial")]
            assert fetch(f"{web.url}/x.tar", folder, **wanted).read_bytes() == content
            assert not list(folder.glob("*.partial"))
    assert any(0 < size < len(content) for size in left)  # some were cut in the middle


def test_a_full_disk_is_named(web, tmp_path, monkeypatch):
    url, contents, _ = web

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megatron_hyena.data.fetch.os.fsync", full)
    with pytest.raises(UserError, match=r"No space left .*s0\.tar.*data\.cache_dir"):
        fetch(url(0), tmp_path / "c", bytes=SIZE, sha256=sha256(contents[0]), retry=QUICK)


def test_content_is_fetched_at_first_use_and_found_by_the_next(web, files):
    _, contents, trouble = web
    cache, shards = files()
    assert not cache.folder.exists()
    for _ in range(2):
        assert shards[1].content.tobytes() == contents[1]
    assert kept(cache.folder) == {sha256(contents[1])}
    _, again = files()
    assert again[1].content.tobytes() == contents[1]
    assert trouble.asked == ["GET /s1.tar"]


def test_a_copy_that_rotted_is_fetched_anew(web, files, capfd):
    _, contents, trouble = web
    cache, (file, *_) = files()
    assert file.content is not None
    place = place_of(cache.folder, file.sha256)
    place.write_bytes(b"x" + contents[0][1:])
    _, (trusting, *_) = files(verify=False)
    assert trusting.content.tobytes()[0] == ord("x")
    _, (careful, *_) = files()
    assert careful.content.tobytes() == contents[0]
    assert "this copy is damaged" in capfd.readouterr().err
    place.write_bytes(contents[0][:-1])
    _, (careful, *_) = files()
    assert careful.content.tobytes() == contents[0]
    assert trouble.times("s0.tar") == 3


def test_the_shards_used_longest_ago_go_first(web, files):
    _, contents, trouble = web
    cache, shards = files(gigabytes=2.5 * SIZE / 1e9)
    first = shards[0].content
    for i in (1, 0, 2):
        assert shards[i].content.tobytes() == contents[i]
        time.sleep(0.02)
    assert kept(cache.folder) == {shards[0].sha256, shards[2].sha256}
    assert shards[1].mapped is None
    assert shards[3].content is not None
    assert kept(cache.folder) == {shards[2].sha256, shards[3].sha256}
    assert first.tobytes() == contents[0]  # a map outlives its file
    assert shards[0].content.tobytes() == contents[0]
    assert trouble.times("s0.tar") == 2
    assert sum(p.stat().st_size for p in cache.folder.glob("*.tar")) <= 2.5 * SIZE


def test_a_copy_that_another_process_removed_is_let_go_of(files):
    cache, shards = files(gigabytes=1.0)
    assert shards[0].content is not None
    place_of(cache.folder, shards[0].sha256).unlink()
    assert shards[1].content is not None
    assert shards[0].mapped is None
    assert shards[1].mapped is not None


def test_a_bound_below_one_shard_is_refused(files):
    with pytest.raises(UserError, match=r"cache_gigabytes allows 90000 bytes, but .*s0.tar has 10"):
        files(gigabytes=0.9 * SIZE / 1e9)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_wanted_comes_by_itself(web, files):
    _, contents, trouble = web
    cache, shards = files()
    trouble.plan("s2.tar", "503")
    cache.want(shards[:3])
    cache.want(shards[:3])
    wait_for(lambda: all(file.mapped is not None for file in shards[:3]))
    assert [trouble.times(f"s{i}.tar") for i in range(5)] == [1, 1, 2, 0, 0]
    assert [file.content.tobytes() for file in shards[:3]] == contents[:3]
    wait_for(lambda: not cache._threads)


def test_what_is_wanted_and_fails_is_raised_where_it_is_read(web, files):
    _, _, trouble = web
    _, shards = files()
    trouble.plan("s4.tar", "503*")
    shards[4].want()
    wait_for(lambda: shards[4].error is not None)
    asked = trouble.times("s4.tar")
    for _ in range(2):
        with pytest.raises(UnreachableError, match=r"s4\.tar: no success in 3 attempts"):
            _ = shards[4].content
    assert trouble.times("s4.tar") == asked == 3


def _read(shards, answers) -> None:
    answers.put([file.content.tobytes() for file in shards])


def test_a_forked_process_goes_on_with_threads_of_its_own(web, files):
    """Also while the parent holds a lock and fetches."""
    _, contents, trouble = web
    cache, shards = files()
    assert shards[0].content is not None
    trouble.plan("s1.tar", "hang")
    shards[1].want()
    wait_for(lambda: trouble.times("s1.tar"))
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with cache._guard:
        child = context.Process(target=_read, args=(shards[:3], answers))
        child.start()
    assert answers.get() == contents[:3]
    child.join()
    assert shards[1].content.tobytes() == contents[1]


def test_a_pickled_shard_carries_no_bytes(web, files):
    _, contents, _ = web
    _, shards = files()
    assert shards[0].content is not None
    packed = pickle.dumps(shards)
    assert len(packed) < 5_000
    assert [file.content.tobytes() for file in pickle.loads(packed)] == contents


def test_the_users_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "megatron-hyena" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ShardCache().folder == tmp_path / ".cache" / "megatron-hyena" / "shards"


def test_a_lock_is_free_again_though_a_child_has_its_file(tmp_path):
    """A child forked while the lock is held keeps the file open, and may live on."""
    context = multiprocessing.get_context("fork")
    with exclusive(tmp_path / "lock"):
        child = context.Process(target=time.sleep, args=(20,))
        child.start()
    try:
        done = threading.Event()

        def take() -> None:
            with exclusive(tmp_path / "lock"):
                done.set()

        threading.Thread(target=take, daemon=True).start()
        assert done.wait(10)
    finally:
        child.kill()
        child.join()


def test_a_killed_holder_frees_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def hold() -> None:
        with exclusive(tmp_path / "lock"):
            held.set()
            time.sleep(60)

    child = context.Process(target=hold)
    child.start()
    assert held.wait(10)
    child.kill()
    with exclusive(tmp_path / "lock"):
        child.join()
