"""Shards: the splits, the tar files as the webdataset library sees them, the damage they notice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import (
    DEFAULT_GAP,
    SPLITS,
    SplitRule,
    Stretch,
    default_gap,
    split_contigs,
)
from megatron_hyena.data.sealed import seal, unseal
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.store import Contig
from megatron_hyena.errors import UserError

LENGTH = 1_042_519
ENDINGS = ("bases", "features", "json")


def _copy(shards: Path, to: Path) -> Path:
    to.mkdir()
    for path in shards.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_test_is_the_last_twentieth_and_gaps_lie_between():
    stretches = split_contigs([Contig("CHLTCG", 0, LENGTH)], SplitRule())
    assert stretches == [
        Stretch("train", "CHLTCG", 0, 921_883),
        Stretch("valid", "CHLTCG", 930_075, 982_201),
        Stretch("test", "CHLTCG", 990_393, LENGTH),
    ]
    assert round(0.05 * LENGTH) == LENGTH - 990_393


def test_a_split_that_is_not_wanted_takes_no_gap():
    contigs = [Contig("a", 0, 1000)]
    rule = SplitRule(valid_fraction=0, test_fraction=0.1, gap=50)
    assert split_contigs(contigs, rule) == [
        Stretch("train", "a", 0, 850),
        Stretch("test", "a", 900, 1000),
    ]
    assert rule.splits == ("train", "test")
    assert split_contigs(contigs, SplitRule(0, 0)) == [Stretch("train", "a", 0, 1000)]


def test_short_contigs_go_whole_by_a_hash_of_their_name():
    contigs = [Contig(f"contig_{i}", 0, 5000) for i in range(4000)]
    stretches = split_contigs(contigs, SplitRule(0.1, 0.2))
    assert all((s.start, s.end) == (0, 5000) for s in stretches)
    share = {split: sum(s.split == split for s in stretches) / 4000 for split in SPLITS}
    assert share["valid"] == pytest.approx(0.1, abs=0.02)
    assert share["test"] == pytest.approx(0.2, abs=0.02)
    u = int.from_bytes(hashlib.sha256(b"contig_0").digest()[:8], "big") / 2**64
    assert stretches[0].split == ("test" if u < 0.2 else "valid" if u < 0.3 else "train")
    assert split_contigs(contigs[::-1], SplitRule(0.1, 0.2)) == stretches[::-1]


@pytest.mark.parametrize(("valid", "test", "gap"), [(-0.1, 0.1, 0), (0.5, 0.5, 0), (0.1, 0.1, -1)])
def test_impossible_rules(valid, test, gap):
    with pytest.raises(UserError, match=r"give two numbers from 0|give 0 or more"):
        SplitRule(valid, test, gap)


def test_webdataset_reads_the_genome_back(chlamydia_shards, chlamydia_store):
    import webdataset

    genome = chlamydia_store.read("CHLTCG", 0, LENGTH)
    labels = chlamydia_store.track("features").read("CHLTCG", 0, LENGTH)
    seen = np.zeros(LENGTH, dtype=np.int64)
    for stretch in split_contigs(chlamydia_store.contigs, SplitRule(gap=4096)):
        files = sorted(str(p) for p in (chlamydia_shards / stretch.split).glob("*.tar"))
        dataset = webdataset.WebDataset(files, shardshuffle=False)
        at = stretch.start
        for sample in dataset:
            place = json.loads(sample["json"])
            assert place == {
                "contig": "CHLTCG",
                "start": at,
                "end": at + len(sample["bases"]),
                "split": stretch.split,
            }
            assert sample["bases"] == genome[at : place["end"]].tobytes()
            assert sample["features"] == labels[at : place["end"]].tobytes()
            seen[at : place["end"]] += 1
            at = place["end"]
        assert at == stretch.end
    assert seen.max() == 1
    assert np.count_nonzero(seen == 0) == 2 * 4096


def test_tar_files_are_those_that_webdataset_writes(tmp_path, chlamydia_shards):
    import tarfile

    import webdataset
    from webdataset.writer import TarWriter

    ours = chlamydia_shards / "train" / "shard-000001.tar"
    again = tmp_path / "again.tar"
    with TarWriter(str(again), user="", group="", mtime=0, encoder=False) as writer:
        for sample in webdataset.WebDataset([str(ours)], shardshuffle=False):
            writer.write({k: v for k, v in sample.items() if k in ("__key__", *ENDINGS)})
    assert again.read_bytes() == ours.read_bytes()
    with tarfile.open(ours) as tar:
        assert len(tar.getnames()) == 3 * 6


def test_memory_map_equals_webdataset(chlamydia_shards):
    import webdataset

    for split in SPLITS:
        files = sorted(str(p) for p in (chlamydia_shards / split).glob("*.tar"))
        dataset = webdataset.WebDataset(files, shardshuffle=False)
        (run,) = open_runs(chlamydia_shards / split)
        whole = b"".join(sample["bases"] for sample in dataset)
        assert run.read(0, run.length).tobytes() == whole
        for start in (0, 1, 29_999, 30_000, run.length - 20_001):
            assert run.read(start, start + 20_001).tobytes() == whole[start : start + 20_001]


def test_index_describes_the_files(chlamydia_shards, chlamydia_store):
    index = ShardIndex.read(chlamydia_shards / "train")
    assert (index.split, index.gap, index.bases) == ("train", 4096, LENGTH - 2 * (52_126 + 4096))
    assert len(index.shards) == 6
    assert index.pieces == 32
    for shard in index.shards:
        content = (chlamydia_shards / "train" / shard.file).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert sum(sample.end - sample.start for sample in shard.samples) <= 200_000
    told = index.provenance
    assert [source["file"] for source in told["sources"]] == ["ct.fasta.gz", "ct.gbk.gz"]
    assert told["sources"] == chlamydia_store.attributes["sources"]
    assert told["options"]["rule"] == {"valid_fraction": 0.05, "test_fraction": 0.05, "gap": 4096}
    assert told["options"]["piece_length"] == 30_000


def test_rerun_gives_the_same_bytes(tmp_path, chlamydia_store, chlamydia_shards):
    settings = ShardSettings(SplitRule(gap=4096), 30_000, 200_000, features=True)
    write_shards(chlamydia_store, tmp_path / "again", settings)
    files = sorted(p.relative_to(chlamydia_shards) for p in chlamydia_shards.rglob("*.*"))
    assert len(files) == 6 + 1 + 1 + 3
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (chlamydia_shards / file).read_bytes()


def test_pieces_of_n_alone_are_left_out_and_part_runs(tmp_path):
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\n" + "ACGTACGTAC" + "N" * 25 + "GGGGG" + "CCCCCCC" + "\n>b\nTTTTT\n")
    genome = write_store(tmp_path / "genome.zarr", [fasta])
    settings = ShardSettings(SplitRule(0, 0), piece_length=10, shard_size=20)
    indices = write_shards(genome, tmp_path / "shards", settings)
    assert indices["train"].bases == 52 - 20
    runs = open_runs(tmp_path / "shards" / "train")
    found = [(run.contig, run.start, run.read(0, run.length).tobytes()) for run in runs]
    assert found == [("a", 0, b"ACGTACGTAC"), ("a", 30, b"NNNNNGGGGGCCCCCCC"), ("b", 0, b"TTTTT")]


def test_a_split_without_bases_is_refused(tmp_path):
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\n" + "ACGT" * 25 + "\n")
    genome = write_store(tmp_path / "genome.zarr", [fasta])
    with pytest.raises(UserError, match=r"split gets no bases .*--gap, or --valid-fraction 0"):
        write_shards(genome, tmp_path / "shards", ShardSettings(SplitRule(gap=50)))
    with pytest.raises(UserError, match="has no track 'features'"):
        write_shards(genome, tmp_path / "shards", ShardSettings(SplitRule(0, 0), features=True))
    assert not (tmp_path / "shards").exists()


def test_existing_shards_need_overwrite(chlamydia_store, chlamydia_shards):
    with pytest.raises(UserError, match="exists already; pass --overwrite"):
        write_shards(chlamydia_store, chlamydia_shards, ShardSettings())


def test_a_flipped_byte_is_noticed(tmp_path, chlamydia_shards):
    folder = _copy(chlamydia_shards / "valid", tmp_path / "valid")
    shard = folder / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 2
    shard.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"shard-000000\.tar is damaged: its SHA-256"):
        open_runs(folder)
    assert len(open_runs(folder, verify=False)) == 1
    shard.write_bytes(bytes(content[:-512]))
    with pytest.raises(UserError, match=r"shard-000000\.tar has \d+ bytes where index\.json says"):
        open_runs(folder, verify=False)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-000000\.tar is in index\.json but missing"):
        open_runs(folder)


def test_missing_and_damaged_index(tmp_path, chlamydia_shards):
    with pytest.raises(UserError, match=r"shards has no index\.json; name a folder of one split"):
        open_runs(chlamydia_shards)
    with pytest.raises(UserError, match="nowhere matches no shards"):
        open_runs(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"\*\.tar matches no shards"):
        open_runs(str(tmp_path / "*.tar"))
    folder = _copy(chlamydia_shards / "valid", tmp_path / "valid")
    index = folder / "index.json"
    text = index.read_text()
    strange = json.loads(text.replace('"offset"', '"off"'))
    del strange["digest"]
    for damaged in (text[:100], "[]", json.dumps(strange), text.replace("CHLTCG", "CHLTCX", 1)):
        index.write_text(damaged)
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            open_runs(folder)
    index.write_bytes(seal({**unseal(text.encode()), "format_version": 9}))
    with pytest.raises(UserError, match="version 9, not"):
        open_runs(folder)


def test_globs_name_folders_or_tar_files(tmp_path, chlamydia_shards):
    both = open_runs(str(chlamydia_shards / "t*"))
    assert [run.start for run in both] == [LENGTH - 52_126, 0]
    (whole,) = open_runs(str(chlamydia_shards / "train" / "*"))
    assert whole.length == LENGTH - 2 * (52_126 + 4096)
    (some,) = open_runs(str(chlamydia_shards / "train" / "shard-00000[12].tar"))
    assert (some.start, some.length) == (180_000, 360_000)
    folder = _copy(chlamydia_shards / "valid", tmp_path / "valid")
    (folder / "stranger.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"stranger\.tar is not in the folder's index\.json"):
        open_runs(str(folder / "*.tar"))


def test_a_short_genome_is_cut_with_a_smaller_gap(tmp_path):
    contigs = [Contig("lambda", 0, 48_502), Contig("plasmid", 48_502, 900)]
    assert default_gap(contigs, 0.05, 0.05) == 2425
    assert default_gap(contigs, 0.1, 0.02) == 970
    assert default_gap(contigs, 0.0, 0.0) == DEFAULT_GAP
    assert default_gap([Contig("chromosome", 0, 10**6)], 0.05, 0.05) == DEFAULT_GAP
    stretches = split_contigs(contigs[:1], SplitRule(gap=default_gap(contigs, 0.05, 0.05)))
    assert [s.split for s in stretches] == ["train", "valid", "test"]
