"""Shards uploaded to a store: whole or without an index, and never over others unasked."""

from __future__ import annotations

import errno

import pytest

from megatron_hyena.corpus.publish import UNFINISHED, destination, publish
from megatron_hyena.data.remote import Retry
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.errors import UserError
from tools import make_shards

QUICK = Retry(attempts=3, first=0.01)


@pytest.fixture(scope="module")
def written(shards_of, random_contigs):
    """The folder of splits of several shards."""
    return shards_of(random_contigs(900, 300)).parent


def names(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_store_holds_what_the_folder_holds(written, bucket):
    publish(written, f"{bucket.url}/c", retry=QUICK)
    assert bucket.objects() == {f"c/{name}": content for name, content in names(written).items()}


def test_indices_come_last(written, bucket):
    publish(written, f"{bucket.url}/c", retry=QUICK)
    put = [one.split("?")[0] for one in bucket.trouble.asked if one.startswith("PUT")]
    assert put[0].endswith(UNFINISHED)
    assert [one.endswith("index.json") for one in put] == [False] * (len(put) - 1) + [True]


def test_failures_on_the_way_are_tried_again(written, bucket):
    bucket.trouble.plan("shard-000001.tar", "503", "refuse", method="PUT")
    bucket.trouble.plan("index.json", "500", method="PUT")
    publish(written, f"{bucket.url}/c", retry=QUICK)
    assert bucket.objects() == {f"c/{name}": content for name, content in names(written).items()}


def test_an_interrupted_upload_does_not_look_whole(written, bucket):
    url = f"{bucket.url}/c"
    bucket.trouble.plan("shard-000002.tar", "503*", method="PUT")
    with pytest.raises(UserError, match=r"shard-000002\.tar: no success in 3 attempts"):
        publish(written, url, retry=QUICK)
    assert f"c/{UNFINISHED}" in bucket.objects()
    with pytest.raises(UserError, match=r"train has no index\.json"):
        open_runs(f"{url}/train")
    bucket.trouble.clear()
    publish(written, url, retry=QUICK)  # nothing is there to be overwritten
    assert bucket.objects().keys() == {f"c/{name}" for name in names(written)}


def test_shards_are_replaced_only_when_asked(written, shards_of, random_contigs, bucket):
    url = f"{bucket.url}/c"
    publish(written, url, retry=QUICK)
    other = shards_of(random_contigs(200)).parent
    with pytest.raises(UserError, match=r"train/index\.json exists already; pass --overwrite"):
        publish(other, url, retry=QUICK)
    assert bucket.objects().keys() == {f"c/{name}" for name in names(written)}

    bucket.trouble.plan("shard-000000.tar", "403*", method="PUT")
    with pytest.raises(UserError, match="the store refuses"):
        publish(other, url, overwrite=True, retry=QUICK)
    assert "c/train/index.json" not in bucket.objects()  # its tars may be of either
    bucket.trouble.clear()
    publish(other, url, overwrite=True, retry=QUICK)
    assert bucket.objects() == {f"c/{name}": content for name, content in names(other).items()}


def test_what_cannot_be_written_is_refused_before_the_work(bucket):
    for output, part in [
        ("https://example.org/c", "a web server takes no files"),
        ("s3://no-such-bucket/c", "does not exist"),
        ("gs://bucket/c", "gs:// is not read"),
    ]:
        opened = destination(output, overwrite=False, retry=QUICK)
        with pytest.raises(UserError, match=part), opened:
            pytest.fail("the work has begun")


def test_a_full_temporary_disk_is_named(bucket):
    opened = destination(f"{bucket.url}/c", overwrite=False, retry=QUICK)
    with pytest.raises(UserError, match=r"no space left for the shards .*; set TMPDIR"), opened:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(bucket.objects()) == [f"c/{UNFINISHED}"]


def test_the_tool_writes_to_a_store(chlamydia_store, tmp_path, bucket, capsys):
    url = f"{bucket.url}/corpora/ct"
    common = ["--store", str(chlamydia_store.path), "--gap", "4096", "--output"]
    assert make_shards.main([*common, str(tmp_path / "shards")]) == 0
    assert make_shards.main([*common, f"{url}/"]) == 0
    assert url in capsys.readouterr().out
    found = bucket.objects()
    assert found == {f"corpora/ct/{k}": v for k, v in names(tmp_path / "shards").items()}
    assert make_shards.main([*common, url]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert bucket.objects() == found
