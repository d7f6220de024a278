"""A corpus against what brute force says it holds, and what is done again and what is not."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.build import STAGES, Corpus, build, build_part
from megatron_hyena.corpus.manifest import Manifest
from megatron_hyena.corpus.options import load_options
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError
from tests.oracles.small_corpus import (
    OVERRIDES,
    identities,
    kept_stretches,
    sequences,
    tree,
    write_inputs,
)

FOLDERS = [f"{kind}/{split}" for kind in ("dna", "protein") for split in ("train", "valid", "test")]


@contextmanager
def silent(stage: str, total: int):
    yield lambda size: None


def make(root: Path, sheet: Path, *overrides: str, overwrite: bool = False, jobs: int = 1):
    changed = {item.partition("=")[0] for item in overrides}
    usual = [item for item in OVERRIDES if item.partition("=")[0] not in changed]
    options = load_options(None, [f"inputs.sheet={sheet}", *usual, *overrides])
    return build(Corpus.open(root, options, overwrite=overwrite), silent, jobs)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, sheet) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "small"
    make(root, sheet)
    return root


def test_every_kept_base_is_in_the_shards_once(corpus):
    found: dict[tuple[str, int], bytes] = {}
    for folder in FOLDERS:
        for run in open_runs(corpus / "shards" / folder):
            place = (run.contig, run.start)
            assert place not in found
            found[place] = run.read(0, run.length).tobytes()
    expected = {(name, start): letters for name, start, letters in kept_stretches()}
    assert len(expected) == 6 + 5 + 24 + 1  # one duplicate of 12 contigs, one parted
    assert found == expected
    for folder in FOLDERS:
        index = ShardIndex.read(corpus / "shards" / folder)
        assert (index.type, index.split) == tuple(folder.split("/"))
        sizes = [sum(s.end - s.start for s in shard.samples) for shard in index.shards]
        assert max(sizes) <= 4000
        assert sum(sizes) == index.bases


def test_a_contig_is_in_one_split_and_the_stores_keep_every_letter(corpus):
    splits: dict[str, set[str]] = {}
    for folder in FOLDERS:
        for run in open_runs(corpus / "shards" / folder):
            splits.setdefault(run.contig, set()).add(folder.split("/")[1])
    assert all(len(some) == 1 for some in splits.values())
    for sample, contigs in sequences().items():
        store = GenomeStore.open(corpus / "stores" / f"{sample}.zarr")
        for name, letters in contigs.items():
            assert store.read(name, 0, len(letters)).tobytes() == letters


def test_reports_say_what_was_dropped_and_why(corpus):
    report = json.loads((corpus / "report.json").read_text())
    everything = [x for contigs in sequences().values() for x in contigs.values()]
    left = sum(len(letters) for _, _, letters in kept_stretches())
    duplicate = len(sequences()["beta"]["b0"])
    assert report["bases"] == sum(map(len, everything))
    assert report["dropped"] == {"exact duplicate": {"records": 1, "bases": duplicate}}
    assert report["left_out_of_records"] == 60 + 30
    assert report["kept"] == {"records": 35, "bases": left}
    assert sum(told["bases"] for told in report["shards"].values()) == left
    assert report["leakage"]["before"]["kmers"].keys() == {"train", "valid", "test"}
    rows = [row.split("\t") for row in (corpus / "plan/records.tsv").read_text().splitlines()]
    told = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert len(told) == 36
    (gone,) = [row for row in told.values() if row["decision"] != "kept"]
    assert {gone["record"], gone["instead"]} == {"alpha/a3", "beta/b0"}
    assert gone["split"] == ""


def test_indices_and_manifest_tell_where_it_comes_from(corpus, sheet):
    manifest = Manifest.read(corpus)
    files = {path for path in tree(corpus) if not path.startswith(".work")}
    assert manifest.files.keys() == files - {"manifest.json"}
    assert [source["file"] for source in manifest.sources] == [
        f"{name}.fa.gz" for name in ("alpha", "beta", "gamma")
    ]
    for source in manifest.sources:
        data = (sheet.parent / source["file"]).read_bytes()
        assert source["md5"] == hashlib.md5(data).hexdigest()
        assert source["sha256"] == hashlib.sha256(data).hexdigest()
    provenance = ShardIndex.read(corpus / "shards/dna/train").provenance
    assert provenance["corpus"] == manifest.content
    assert provenance["sources"] == manifest.sources
    assert provenance["options"] == manifest.options
    assert [sample["weight"] for sample in provenance["samples"]] == [1, 1, 2]


def test_neither_jobs_nor_parts_change_a_byte(tmp_path, corpus, sheet):
    make(tmp_path / "jobs", sheet, jobs=2)
    assert tree(tmp_path / "jobs") == tree(corpus)
    options = load_options(None, [f"inputs.sheet={sheet}", *OVERRIDES])
    parts = Corpus.open(tmp_path / "parts", options)
    for stage in STAGES:
        count = 1 if stage in ("plan", "finish") else 2
        for i in reversed(range(count)):
            build_part(parts, stage, (i, count), silent)
    assert tree(tmp_path / "parts") == tree(corpus)


def test_a_stage_waits_for_all_tasks_of_the_one_before(tmp_path, sheet):
    options = load_options(None, [f"inputs.sheet={sheet}", *OVERRIDES])
    corpus = Corpus.open(tmp_path / "parts", options)
    build_part(corpus, "store", (0, 2), silent)
    with pytest.raises(UserError, match=r"store/beta is not finished.*--stage store first"):
        build_part(corpus, "plan", (0, 1), silent)


def test_nothing_is_done_twice(tmp_path, sheet):
    root = tmp_path / "corpus"
    make(root, sheet)
    before = identities(root)
    make(root, sheet)
    assert identities(root) == before


def test_a_change_redoes_what_depends_on_it(tmp_path, sheet):
    root = tmp_path / "corpus"
    make(root, sheet)
    before, old = identities(root), Manifest.read(root)
    with pytest.raises(UserError, match=r"finished corpus of other options.*--overwrite"):
        make(root, sheet, "shards.piece_length=500")
    assert identities(root) == before
    make(root, sheet, "shards.piece_length=500", overwrite=True)
    after = identities(root)
    kept = {name for name in before if after.get(name) == before[name]}
    assert {name.split("/")[0] for name in kept} == {"stores", "records"}
    assert kept == {name for name in before if name.startswith(("stores", "records"))}
    assert Manifest.read(root).content != old.content
    make(root, sheet, overwrite=True)
    assert Manifest.read(root) == old


def test_other_names_of_outputs_leave_no_old_ones(tmp_path, corpus, sheet):
    root = tmp_path / "corpus"
    make(root, sheet, "shards.compress=true")
    packed = tree(root)
    assert not list(root.rglob("*.tar"))
    make(root, sheet, "shards.compress=false", overwrite=True)
    assert tree(root) == tree(corpus)
    make(root, sheet, "shards.compress=true", overwrite=True)
    assert tree(root) == packed


def test_what_belongs_to_a_sample_that_left_is_removed(tmp_path, sheet):
    inputs = tmp_path / "inputs"
    own = write_inputs(inputs)
    root = tmp_path / "corpus"
    make(root, own)
    own.write_text("".join(own.read_text().splitlines(keepends=True)[:3]))
    make(root, own, overwrite=True)
    assert not (root / "stores/gamma.zarr").exists()
    assert sorted(path.name for path in (root / "shards").iterdir()) == ["test", "train", "valid"]
    make(tmp_path / "new", own)
    assert tree(tmp_path / "new") == tree(root)


def test_a_failing_task_ends_the_run_and_keeps_what_is_finished(tmp_path):
    own = write_inputs(tmp_path / "inputs")
    good = (own.parent / "beta.fa.gz").read_bytes()
    (own.parent / "beta.fa.gz").write_bytes(good[:-20])
    root = tmp_path / "corpus"
    with pytest.raises(UserError, match=r"beta\.fa\.gz is a (truncated|damaged) gzip file"):
        make(root, own)
    before = identities(root)
    assert {name.split("/")[1] for name in before} == {"alpha.zarr", "alpha.json", "alpha.npz"}
    (own.parent / "beta.fa.gz").write_bytes(good)
    make(root, own)
    assert before.items() <= identities(root).items()


def test_a_corpus_that_changes_has_no_manifest_meanwhile(tmp_path):
    own = write_inputs(tmp_path / "inputs")
    root = tmp_path / "corpus"
    make(root, own)
    before = tree(root)
    path = own.parent / "gamma.fa.gz"
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(good + gzip.compress(b">p0\nAAA\n"))
    with pytest.raises(UserError, match="two records are named 'p0'"):
        make(root, own)
    assert not (root / "manifest.json").exists()
    assert not list(root.rglob("index.json"))
    path.write_bytes(good)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    make(root, own)
    assert tree(root) == before


def test_a_missing_shard_is_made_again_with_the_same_bytes(tmp_path, sheet):
    root = tmp_path / "corpus"
    make(root, sheet)
    before, stamps = tree(root), identities(root)
    (root / "shards/dna/train/shard-000001.tar").unlink()
    make(root, sheet)
    assert tree(root) == before
    after = identities(root)
    changed = {name for name in after if after[name] != stamps[name]}
    assert {name for name in changed if name.endswith(".tar")} == {
        "shards/dna/train/shard-000001.tar"
    }
    assert not any(name.startswith(("stores", "records", "plan")) for name in changed)


def test_tracks_that_a_sample_lacks_are_unknown(tmp_path):
    own = write_inputs(tmp_path / "inputs")
    rows = [f"a{i}\t0\t{1500 + 100 * i}\t0.25\n" for i in range(6)]
    (own.parent / "c.bedgraph").write_text("".join(rows))
    own.write_text("path\ttracks\nalpha.fa.gz\tconservation=c.bedgraph\nbeta.fa.gz\t\n")
    root = tmp_path / "corpus"
    make(root, own, "shards.tracks=[conservation]")
    values: dict[str, set[float]] = {}
    for split in ("train", "valid", "test"):
        for run in open_runs(root / "shards" / split):
            track = np.nan_to_num(run.read_track("conservation", 0, run.length), nan=-1)
            values.setdefault(run.contig.split("/")[0], set()).update(track.tolist())
    assert values == {"alpha": {0.25}, "beta": {-1.0}}
    with pytest.raises(UserError, match=r"'gc', which no sample has; they have conservation"):
        make(root, own, "shards.tracks=[gc]", overwrite=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shards.pice_length=5"], r"unknown key shards\.pice_length; did you mean shards\.piece"),
        ([], "names no sequences; give inputs.paths or inputs.sheet"),
        (["inputs.paths=[nowhere.fa]"], r"nowhere\.fa does not exist"),
        (["inputs.sheet=a.tsv", "inputs.paths=[b.fa]"], "which tells inputs.paths of each sample"),
        (["inputs.type=rns", "inputs.paths=[b.fa]"], "'rns' is no sequence type"),
        (["leakage.method=sketches", "splits.by=position"], "cannot tell splits by position apart"),
        (["leakage.method=none", "leakage.method=auto"], "gives leakage.method twice"),
        (["shards.tracks=[a,a]"], "holds a name twice"),
    ],
)
def test_mistakes_in_options_are_one_sentence(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        Corpus.open(tmp_path / "corpus", load_options(None, overrides))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "corpus").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, sheet):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds no corpus in the making"):
        make(tmp_path / "mine", sheet)


def test_two_paths_of_one_name_are_refused(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.fa").write_text(">c\nACGT\n")
    paths = f"inputs.paths=[{tmp_path}/x,{tmp_path}/y]"
    with pytest.raises(UserError, match="would both be the sample a; name them in a sample sheet"):
        Corpus.open(tmp_path / "corpus", load_options(None, [paths]))
    (sample,) = Corpus.open(
        tmp_path / "corpus", load_options(None, [paths, "inputs.name=both"])
    ).samples
    assert [Path(path).parent.name for path in sample.sequences] == ["x", "y"]
