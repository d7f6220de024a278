"""Shards uploaded to a store: whole or without an index, and never over others unasked."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from megatron_hyena.corpus.publish import AT_ONCE, UNFINISHED, Destination, destination
from megatron_hyena.data.remote import Retry
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.errors import UserError
from tools import make_shards

pytestmark = pytest.mark.smoke

QUICK = Retry(attempts=3, first=0.01)


@pytest.fixture(scope="module")
def written(shards_of, random_contigs):
    """The folder of splits of several shards."""
    return shards_of(random_contigs(900, 300)).parent


def publish(folder: Path, location: str, *, overwrite: bool = False) -> list[int]:
    """Write a folder's shards as if they were cut now; how many lay there after each."""
    with destination(location, overwrite=overwrite, retry=QUICK) as place:
        return write(folder, place)


def write(folder: Path, place: Destination) -> list[int]:
    lying = []
    for split in sorted(path for path in folder.iterdir() if path.is_dir()):
        cut = place.folder / split.name
        cut.mkdir(parents=True)
        for shard in ShardIndex.read(split).shards:
            path = Path(shutil.copy(split / shard.file, cut))
            place.finished(path, shard)
            lying.append(len([*place.folder.parent.rglob("*.tar*")]))
        shutil.copy(split / "index.json", cut)
    return lying


def put(bucket) -> list[str]:
    """Names of what was written, in order."""
    return [one.split("?")[0] for one in bucket.trouble.asked if one.startswith("PUT")]


def names(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_store_holds_what_the_folder_holds(written, bucket):
    publish(written, f"{bucket.url}/c")
    assert bucket.objects() == {f"c/{name}": content for name, content in names(written).items()}


def test_indices_come_last(written, bucket):
    publish(written, f"{bucket.url}/c")
    found = put(bucket)
    assert found[0].endswith(UNFINISHED)
    assert [one.endswith("index.json") for one in found] == [False] * (len(found) - 1) + [True]


def test_each_shard_goes_as_soon_as_it_is_cut(written, bucket):
    """A few lie on the disk at a time, and the last are cut when the first are in the store."""
    bucket.trouble.plan("shard-000000.tar", "503", method="PUT")
    place = destination(f"{bucket.url}/c", overwrite=False, retry=QUICK)
    with place as opened:
        lying = write(written, opened)
        assert len(lying) > 2 * AT_ONCE
        assert max(lying) <= AT_ONCE
        there = bucket.objects().keys() - {f"c/{UNFINISHED}"}
        assert len(lying) - AT_ONCE <= len(there) <= len(lying)
        assert not any(name.endswith("index.json") for name in there)
    assert bucket.objects() == {f"c/{name}": content for name, content in names(written).items()}


def test_what_lies_there_is_not_uploaded_again(written, bucket):
    url = f"{bucket.url}/c"
    cut_off = destination(url, overwrite=False, retry=QUICK)
    with pytest.raises(KeyboardInterrupt), cut_off as place:
        write(written, place)
        raise KeyboardInterrupt
    there = {name: body for name, body in bucket.objects().items() if name.endswith(".tar")}
    assert len(there) > 4
    first, second, third = sorted(there)[:3]
    bucket.put(first, there[first])  # the same bytes without a checksum
    bucket.put(second, there[second][:-1])
    client, changed = bucket._client, there[third][:-1] + b"x"
    client.put_object(
        Bucket=bucket._name, Key=third, Body=changed, Metadata={"sha256": "of something else"}
    )
    bucket.trouble.clear()
    publish(written, url)
    sent = {name.partition("/c/")[2] for name in put(bucket) if name.endswith(".tar")}
    missing = {f"c/{name}" for name in names(written) if name.endswith(".tar")} - there.keys()
    assert {f"c/{name}" for name in sent} == {first, second, third} | missing
    assert bucket.objects() == {f"c/{name}": content for name, content in names(written).items()}

    bucket.trouble.clear()  # nor where a whole corpus is replaced by itself
    publish(written, url, overwrite=True)
    assert not [name for name in put(bucket) if name.endswith(".tar")]


def test_a_failure_ends_the_cutting(written, bucket):
    bucket.trouble.plan("shard-000000.tar", "503*", method="PUT")
    place = destination(f"{bucket.url}/c", overwrite=False, retry=QUICK)
    with pytest.raises(UserError, match=r"shard-000000\.tar: no success"), place as opened:
        write(written, opened)
        pytest.fail("all shards were cut")


def test_failures_on_the_way_are_tried_again(written, bucket):
    bucket.trouble.plan("shard-000001.tar", "503", "refuse", method="PUT")
    bucket.trouble.plan("index.json", "500", method="PUT")
    publish(written, f"{bucket.url}/c")
    assert bucket.objects() == {f"c/{name}": content for name, content in names(written).items()}


def test_an_interrupted_upload_does_not_look_whole(written, bucket):
    url = f"{bucket.url}/c"
    bucket.trouble.plan("shard-000002.tar", "503*", method="PUT")
    with pytest.raises(UserError, match=r"shard-000002\.tar: no success in 3 attempts"):
        publish(written, url)
    assert f"c/{UNFINISHED}" in bucket.objects()
    with pytest.raises(UserError, match=r"train has no index\.json"):
        open_runs(f"{url}/train")
    bucket.trouble.clear()
    publish(written, url)  # nothing is there to be overwritten
    assert bucket.objects().keys() == {f"c/{name}" for name in names(written)}


def test_shards_are_replaced_only_when_asked(written, shards_of, random_contigs, bucket):
    url = f"{bucket.url}/c"
    publish(written, url)
    other = shards_of(random_contigs(200, letters=b"TGCA")).parent
    with pytest.raises(UserError, match=r"train/index\.json exists already; pass --overwrite"):
        publish(other, url)
    assert bucket.objects().keys() == {f"c/{name}" for name in names(written)}

    bucket.trouble.plan("shard-000000.tar", "403*", method="PUT")
    with pytest.raises(UserError, match="the store refuses"):
        publish(other, url, overwrite=True)
    assert "c/train/index.json" not in bucket.objects()  # its tars may be of either
    bucket.trouble.clear()
    publish(other, url, overwrite=True)
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
