"""The genome store: round trip, labels, provenance, and the writes it must refuse."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO

from megatron_hyena.corpus import prepare
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.data import store
from megatron_hyena.data.store import Contig, GenomeStore
from megatron_hyena.errors import UserError
from megatron_hyena.formats.fasta import read_fasta


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 7 bases, so that records, blocks and chunks fall across each other."""
    monkeypatch.setattr(prepare, "CHUNK", 7)
    monkeypatch.setattr(store, "CHUNK", 7)


def test_round_trip_of_many_contigs_keeps_case_and_n(tmp_path, small_chunks):
    one, two = tmp_path / "one.fa", tmp_path / "two.fa.gz"
    one.write_text(">a x\nACGTNNNNacgtnn\nRYK\n>b\nG\n")
    two.write_bytes(gzip.compress(b">c\n" + b"GATTACA" * 9 + b"\n"))
    written = write_store(tmp_path / "genome.zarr", [one, two])
    assert written.contigs == [Contig("a", 0, 17), Contig("b", 17, 1), Contig("c", 18, 63)]
    assert written.total == 81
    assert written.read("a", 0, 17).tobytes() == b"ACGTNNNNacgtnnRYK"
    assert written.read("b", 0, 1).tobytes() == b"G"
    assert written.read("c", 5, 16).tobytes() == (b"GATTACA" * 9)[5:16]
    assert written.read("c", 63, 63).tobytes() == b""
    composition = written.attributes["composition"]
    assert composition == {"bases": 81, "gc": 2 + 2 + 1 + 18, "n": 6, "lower_case": 6}
    assert written.tracks == []


def test_chlamydia_bases_and_labels(chlamydia_store, chlamydia_files):
    ((name, bases),) = read_fasta(chlamydia_files[0])
    assert np.array_equal(chlamydia_store.read(name, 0, len(bases)), bases)
    with gzip.open(chlamydia_files[1], "rt") as file:
        oracle = SeqIO.read(file, "genbank")
    expected = np.zeros(len(bases), dtype=np.uint8)
    flags = {("CDS", 1): 1, ("CDS", -1): 2, "tRNA": 4, "rRNA": 8, "misc_RNA": 16, "gene": 32}
    for feature in oracle.features:
        key = (feature.type, feature.location.strand) if feature.type == "CDS" else feature.type
        for part in feature.location.parts:
            expected[int(part.start) : int(part.end)] |= flags.get(key, 0)
    track = chlamydia_store.track("features")
    assert np.array_equal(track.read(name, 0, len(bases)), expected)
    assert np.array_equal(track.read(name, 1000, 2000), expected[1000:2000])
    assert track.attributes["legend"]["2"].startswith("coding sequence on the opposite")
    assert track.attributes["counts"]["CDS"] == 895
    assert np.count_nonzero(expected & 3) > 900_000


def test_provenance_names_files_sizes_and_checksums(chlamydia_store, chlamydia_files):
    sources = chlamydia_store.attributes["sources"]
    assert [source["role"] for source in sources] == ["sequence", "annotation"]
    for source, path in zip(sources, chlamydia_files, strict=True):
        content = path.read_bytes()
        assert source["file"] == path.name
        assert source["bytes"] == len(content)
        assert source["sha256"] == hashlib.sha256(content).hexdigest()
        assert source["sha256"] in (path.parent / "README.md").read_text()


def test_plain_zarr_opens_it(chlamydia_store):
    import zarr

    bases = zarr.open_array(str(chlamydia_store.path / "bases"), mode="r")
    assert bases.metadata.zarr_format == 3
    assert bases.shape == (1_042_519,)
    assert bases.chunks == (store.CHUNK,)
    offsets = zarr.open_array(str(chlamydia_store.path / "offsets"), mode="r")
    assert np.asarray(offsets).tolist() == [0, 1_042_519]


def test_rerun_gives_the_same_bytes(tmp_path, chlamydia_store, chlamydia_files):
    fasta, genbank = chlamydia_files
    again = write_store(tmp_path / "genome.zarr", [fasta], [genbank])
    assert _files(again.path) == _files(chlamydia_store.path)


def test_reads_outside_are_refused(chlamydia_store):
    with pytest.raises(UserError, match="no contig 'chr1'"):
        chlamydia_store.read("chr1", 0, 1)
    for start, end in ((-1, 5), (0, 1_042_520), (5, 4)):
        with pytest.raises(UserError, match="is not inside the contig, which has 1042519"):
            chlamydia_store.read("CHLTCG", start, end)
    with pytest.raises(UserError, match=r"no track 'x'; it has \['features'\]"):
        chlamydia_store.track("x")


def test_two_contigs_of_one_name_in_two_files(tmp_path):
    one, two = tmp_path / "one.fa", tmp_path / "two.fa"
    one.write_text(">a\nAC\n")
    two.write_text(">a\nGT\n")
    with pytest.raises(UserError, match=r"two\.fa and .*one\.fa both have a record named 'a'"):
        write_store(tmp_path / "genome.zarr", [one, two])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.fa", "two.fa"]


def test_a_failure_leaves_the_old_store(tmp_path):
    good, bad = tmp_path / "good.fa", tmp_path / "bad.fa"
    good.write_text(">a\nACGT\n")
    bad.write_text(">a\nACGT!\n")
    path = tmp_path / "genome.zarr"
    write_store(path, [good])
    before = _files(path)
    with pytest.raises(UserError, match=r"genome\.zarr exists already; pass --overwrite"):
        write_store(path, [bad])
    with pytest.raises(UserError, match="holds '!' at position 5"):
        write_store(path, [bad], overwrite=True)
    assert _files(path) == before
    good.write_text(">b\nGGGG\n")
    assert write_store(path, [good], overwrite=True).contigs == [Contig("b", 0, 4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.fa", "genome.zarr", "good.fa"]


def test_overwrite_spares_folders_that_are_no_store(tmp_path):
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\nACGT\n")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(UserError, match=r"thesis exists and holds no zarr\.json"):
        write_store(tmp_path / "thesis", [fasta], overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "precious"


def test_an_interrupted_run_is_swept_away(tmp_path):
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\nACGT\n")
    stale = tmp_path / ".genome.zarr.partial"
    stale.mkdir()
    (stale / "half").write_text("x")
    opened = write_store(tmp_path / "genome.zarr", [fasta])
    assert "half" not in _files(opened.path)
    assert not stale.exists()


def test_open_refuses_what_is_no_store(tmp_path):
    with pytest.raises(UserError, match="is no genome store"):
        GenomeStore.open(tmp_path)
    (tmp_path / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"format": "x"}})
    )
    with pytest.raises(UserError, match="format 'x', version None"):
        GenomeStore.open(tmp_path)
