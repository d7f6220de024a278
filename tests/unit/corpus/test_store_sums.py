"""A store without a corpus: its own checksums notice whatever is changed, missing or foreign."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.corpus.verify import findings_of, open_check
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError
from tools import verify_corpus


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    (folder / "g.fa").write_text(">c1\n" + "ACGTTGCA" * 500 + "\n>c2\n" + "GGNNacgt" * 50 + "\n")
    (folder / "g.bg").write_text("c1\t0\t4000\t0.5\n")
    write_store(folder / "g.zarr", [folder / "g.fa"], tracks={"conservation": folder / "g.bg"})
    return folder / "g.zarr"


@pytest.fixture
def store(tmp_path, made) -> Path:
    shutil.copytree(made, tmp_path / "mine" / "genome.zarr")
    return tmp_path / "mine" / "genome.zarr"


def findings(folder: Path) -> list[str]:
    return [line for check in open_check(folder) for line in findings_of(check)]


def add_marks(store: Path, *, overwrite: bool = False) -> None:
    def marks(contig):
        return np.arange(contig.length) % 3 == 0

    add_track(GenomeStore.open(store), "boundaries", marks, {}, overwrite=overwrite)


def test_the_list_is_that_of_the_files_and_zarr_reads_the_store_without_a_word(store):
    content = json.loads((store / "zarr.json").read_bytes())["attributes"]
    expected = {
        str(path.relative_to(store)): [
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        ]
        for path in store.rglob("*")
        if path.is_file() and path != store / "zarr.json"
    }
    assert content["files"] == expected
    assert len(expected) == 7
    blank = (store / "zarr.json").read_bytes().replace(content["digest"].encode(), b"")
    assert hashlib.sha256(blank).hexdigest() == content["digest"]
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(str(store), mode="r")
        assert sorted(group.keys()) == ["bases", "offsets", "tracks"]


def test_every_flipped_bit_is_found_and_its_file_named(store):
    assert findings(store) == []
    draw = random.Random(3)
    paths = sorted(path for path in store.rglob("*") if path.is_file())
    for number in range(120):
        path = paths[number % len(paths)]
        content = path.read_bytes()
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        found = findings(store)
        assert len(found) == 1, (path, found)
        assert found[0].startswith(str(path))
        path.write_bytes(content)


def test_missing_and_foreign_files_are_named(store):
    (store / "tracks/conservation/c/0").unlink()
    (store / "bases/c/7").write_bytes(b"x")
    assert findings(store) == [
        f"{store}/bases/c/7: not in zarr.json; it belongs to something else: remove it",
        f"{store}/tracks/conservation/c/0: in zarr.json but missing",
    ]


def test_a_track_that_is_added_is_listed_and_hides_no_damage(store):
    add_marks(store)
    assert findings(store) == []
    path = store / "bases/c/0"
    path.write_bytes(path.read_bytes() + b"x")
    add_marks(store, overwrite=True)
    (line,) = findings(store)
    assert line.startswith(str(path))


def test_the_first_track_of_a_store_is_listed_too(tmp_path, made):
    store = write_store(tmp_path / "genome.zarr", [made.parent / "g.fa"]).path
    add_marks(store)
    assert findings(store) == []
    (store / "tracks/zarr.json").write_bytes(b"{}")
    assert len(findings(store)) == 1


def test_a_folder_of_a_store_and_its_shards_is_checked_whole(store, capsys):
    folder = store.parent
    settings = ShardSettings(SplitRule(0.1, 0.1, gap=16), 1000, 1500)
    write_shards(GenomeStore.open(store), folder / "shards", settings)
    assert verify_corpus.main([str(folder)]) == 0
    tars = len(list(folder.glob("shards/*/*.tar")))
    assert f"contents of {7 + tars} files" in capsys.readouterr().out
    (folder / "shards/valid/shard-000000.tar").unlink()
    (store / "offsets/c/0").unlink()
    assert [line.rpartition("/")[2] for line in findings(folder)] == [
        "0: in zarr.json but missing",
        "shard-000000.tar: in index.json but missing",
    ]


def test_a_store_of_an_earlier_version_is_told_and_not_called_well(store, capsys):
    content = json.loads((store / "zarr.json").read_bytes())
    del content["attributes"]["files"], content["attributes"]["digest"]
    (store / "zarr.json").write_text(json.dumps(content))
    assert verify_corpus.main([str(store)]) == 2
    assert "has no checksums, since an earlier version made it" in capsys.readouterr().err
    add_marks(store)  # which vouches for nothing that it did not write
    with pytest.raises(UserError, match="has no checksums"):
        open_check(store)
