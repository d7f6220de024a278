"""Objects of a store arrive whole, whatever happens on the way that may pass."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_hyena.data import remote
from megatron_hyena.data.remote import Retry, find, is_remote, read_object, read_range
from megatron_hyena.data.remote_errors import MissingError, ShortError, UnreachableError
from megatron_hyena.errors import UserError
from tests.oracles.stores import Trouble, WebFolder

pytestmark = pytest.mark.smoke

QUICK = Retry(attempts=4, first=0.01)
CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(params=["s3", "http with ranges", "http without"])
def stored(request, bucket, tmp_path):
    """(URL of an object of CONTENT, the proxy before its store)."""
    if request.param != "http without":
        url, trouble = bucket.put("a/x.tar", CONTENT), bucket.trouble
        public = url.replace("s3:/", trouble.url)  # of the same object
        yield (url if request.param == "s3" else public), trouble
        return
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tar").write_bytes(CONTENT)
    with WebFolder(tmp_path) as web, Trouble(web.port) as trouble:
        yield f"{trouble.url}/a/x.tar", trouble


def whole(url: str, size: int = len(CONTENT)) -> bytes:
    return b"".join(read_range(url, 0, size, QUICK))


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ([], []),
        (["503"], ["503"]),
        (["500", "429", "502"], ["500", "429", "502"]),
        (["cut"], ["1 of 4"]),
        (["short"], ["the body ends after 150000 of 300000 bytes"]),
        (["cut", "503", "short"], ["1 of 4", "503", "the body ends"]),
    ],
)
def test_what_passes_is_tried_again_and_reported_once(stored, kinds, told, capfd):
    url, trouble = stored
    trouble.plan("x.tar", *kinds)
    assert whole(url) == CONTENT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(kinds)
    for number, (line, part) in enumerate(zip(lines, told, strict=True), start=1):
        assert line.startswith(f"{url}: attempt {number} of 4 failed (")
        assert part in line


def test_ranges_that_do_not_begin_at_zero(stored):
    url, trouble = stored
    trouble.plan("x.tar", "cut")
    assert b"".join(read_range(url, 1_000, 299_000, QUICK)) == CONTENT[1_000:299_000]
    assert list(read_range(url, 7, 7, QUICK)) == []


def test_a_large_object_is_taken_up_where_it_broke_off(stored, monkeypatch):
    """Failures with bytes gained in between do not add up, so six do not end four attempts."""
    monkeypatch.setattr(remote, "_BLOCK", 1_000)
    monkeypatch.setattr(remote, "_RANGE", 20_000)
    url, trouble = stored
    trouble.plan("x.tar", *["cut"] * 3, "", *["cut"] * 3)
    assert whole(url) == CONTENT


@pytest.mark.parametrize(
    ("kind", "error", "asked", "part"),
    [
        ("503*", UnreachableError, 4, "no success in 4 attempts (the last: 503"),
        ("403*", UserError, 1, "the store refuses (403"),
        ("404*", MissingError, 1, "does not exist"),
        ("400*", UserError, 1, "400"),
    ],
)
def test_what_does_not_pass_ends_with_one_sentence(stored, kind, error, asked, part):
    url, trouble = stored
    trouble.plan("x.tar", kind)
    for read in (whole, lambda url: read_object(url, QUICK)):
        trouble.asked.clear()
        with pytest.raises(UserError) as caught:
            read(url)
        assert type(caught.value) is error
        assert str(caught.value).startswith(url)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)
        assert trouble.times("x.tar") == asked


def test_connections_that_close_without_an_answer(stored):
    url, trouble = stored
    trouble.plan("x.tar", "refuse")
    assert whole(url) == CONTENT
    trouble.plan("x.tar", "refuse*")
    with pytest.raises(UnreachableError, match="in 4 attempts"):
        whole(url)


def test_an_object_shorter_than_its_index_tells(stored):
    url, _ = stored
    with pytest.raises(ShortError, match="ends after 300000 of 300001 bytes"):
        whole(url, len(CONTENT) + 1)


def test_silence_is_a_failure(stored, monkeypatch, capfd):
    url, trouble = stored
    monkeypatch.setattr(remote, "TIMEOUT", 0.3)
    trouble.plan("x.tar", "hang")
    assert whole(url) == CONTENT
    assert "attempt 1 of 4" in capfd.readouterr().err
    trouble.plan("x.tar", "hang*")
    with pytest.raises(UnreachableError, match=r"(?i)time"):
        b"".join(read_range(url, 0, 10, Retry(attempts=2, first=0.01)))


def test_pauses_double_up_to_the_longest(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", pauses.append)
    for failures in range(1, 8):
        Retry(attempts=9, first=0.5, longest=6.0).wait("x", failures, "why")
    for pause, most in zip(pauses, [0.5, 1, 2, 4, 6, 6, 6], strict=True):
        assert most / 2 <= pause <= most
    assert len({pause / most for pause, most in zip(pauses, [0.5, 1, 2, 4], strict=False)}) == 4


def test_no_server_at_all():
    with pytest.raises(UnreachableError, match="refused"):
        read_object("http://127.0.0.1:9/x", Retry(attempts=2, first=0.01))


@pytest.mark.parametrize("url", ["http://user:word@127.0.0.1/x", "http://127.0.0.1:none/x"])
def test_a_name_that_is_none_is_not_tried_again(url, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda pause: pytest.fail("tried again"))
    with pytest.raises(UserError, match="mend the name"):
        read_object(url)


def test_names_of_stores():
    assert [is_remote(name) for name in ("s3://b/x", "https://h/x", "/a/b", "c:/x")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(UserError, match="gs:// is not read; use s3://"):
        is_remote("gs://bucket/x")
    with pytest.raises(UserError, match="lists no files"):
        find("http://127.0.0.1:9/*/train")


def test_globs_list_folders_and_files(bucket):
    for key in ("c/one/train/1.tar", "c/one/train/2.tar", "c/two/train/1.tar", "c/two/valid/1.tar"):
        bucket.put(key, b"x")
    bucket.trouble.plan("list-type", "503")
    assert find(f"{bucket.url}/c/*/train", QUICK) == [
        (f"{bucket.url}/c/one/train", True),
        (f"{bucket.url}/c/two/train", True),
    ]
    assert find(f"{bucket.url}/c/one/train/[2-9].tar", QUICK) == [
        (f"{bucket.url}/c/one/train/2.tar", False)
    ]
    assert find(f"{bucket.url}/nothing/*", QUICK) == []


def test_a_public_bucket_needs_no_credentials(bucket, monkeypatch, tmp_path):
    url = bucket.put("x.tar", CONTENT)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    remote._is_anonymous.cache_clear()
    try:
        assert whole(url) == CONTENT
        assert remote._is_anonymous()
    finally:
        remote._is_anonymous.cache_clear()


def test_a_missing_library_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"pip install 'megatron-hyena\[remote\]'"):
        read_object("s3://bucket/x")
