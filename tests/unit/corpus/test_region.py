"""Regions as they are written, and the files of intervals and numbers made from them."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.labels import gene_features
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.region import (
    Region,
    fasta_source,
    parse_region,
    region_annotation,
    store_source,
)
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation
from megatron_hyena.formats.interval_files import write_bed, write_values
from megatron_hyena.formats.track_files import read_track_file

LENGTHS = {"chr1": 5000, "HLA:A*01": 70, "HLA": 9}


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("chr1", ("chr1", 0, 5000)),
        ("chr1:1-1", ("chr1", 0, 1)),
        ("chr1:1,001-2,000", ("chr1", 1000, 2000)),
        ("chr1:4990", ("chr1", 4989, 5000)),
        ("chr1:4990-", ("chr1", 4989, 5000)),
        ("HLA:A*01", ("HLA:A*01", 0, 70)),
        ("HLA:A*01:3-4", ("HLA:A*01", 2, 4)),
    ],
)
def test_regions_count_from_one_and_include_both_ends(text, region):
    found = parse_region(text, LENGTHS, Path("x.fa"))
    assert found == Region(*region)
    assert found.length == region[2] - region[1]
    assert parse_region(str(found), LENGTHS, Path("x.fa")) == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("chr2:1-5", r"x.fa has no contig 'chr2' \(it has chr1, "),
        ("chr2", "has no contig 'chr2'"),
        ("chr1:0-5", "from 0 to 5; bases count from 1"),
        ("chr1:7-5", "from 7 to 5"),
        ("chr1:1-5001", "reaches base 5,001, but chr1 in x.fa has 5,000"),
        ("chr1:6000", "reaches base 6,000, but chr1 in x.fa has 5,000"),
        ("chr1:a-b", "'a-b' is no stretch"),
        ("chr1:1-2-3", "'1-2-3' is no stretch"),
        ("chr1:", "'' is no stretch"),
        (None, "x.fa has 3 contigs; choose one with --region, such as chr1:1-2000"),
    ],
)
def test_other_regions_are_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_region(text, LENGTHS, Path("x.fa"))


def test_the_only_contig_needs_no_name():
    assert parse_region(None, {"a": 3}, Path("x.fa")) == Region("a", 0, 3)


@pytest.fixture
def genome(tmp_path):
    fasta, gff = tmp_path / "g.fa", tmp_path / "g.gff"
    fasta.write_text(">a\n" + "ACGT" * 5 + "\n>b\n" + "AACCGGTT" * 10 + "\n")
    rows = [
        "b\t.\tgene\t11\t40\t.\t-\t.\tID=one",
        "b\t.\tCDS\t13\t40\t.\t-\t0\tID=cds;Parent=one",
        "b\t.\tCDS\t51\t60\t.\t+\t0\tID=two",
        "a\t.\tgene\t1\t20\t.\t+\t.\tID=other",
    ]
    gff.write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    return fasta, gff


def test_bases_and_annotation_of_a_fasta_file(genome):
    fasta, gff = genome
    source = fasta_source(fasta, SequenceType.DNA)
    assert source.lengths == {"a": 20, "b": 80} and source.store is None
    assert source.open("b")(8, 12).tobytes() == b"AACC"
    assert region_annotation(source, Region("b", 0, 80), None) is None
    found = region_annotation(source, Region("b", 30, 55), gff)
    assert found is not None
    assert found.genes == [(10, 40, -1, "one"), (50, 60, 1, "two")]
    assert found.flags.tolist() == [34] * 10 + [0] * 10 + [1] * 5
    between = region_annotation(source, Region("b", 40, 50), gff)
    assert between is not None
    assert between.genes == []


def test_genes_and_what_none_of_them_covers(tmp_path):
    features = [
        ("gene", "10..20"),
        ("CDS", "12..20"),
        ("CDS", "complement(join(30..35,40..50))"),
        ("tRNA", "60..65"),
        ("repeat_region", "70..75"),
        ("gene", "join(90..99,1..5)"),
    ]
    table = "".join(
        f'     {kind:<16}{place}\n                     /locus_tag="x{number}"\n'
        for number, (kind, place) in enumerate(features)
    )
    (tmp_path / "g.gb").write_text(
        f"LOCUS       c 100 bp DNA\nFEATURES             Location/Qualifiers\n{table}//\n"
    )
    (record,) = read_annotation(tmp_path / "g.gb")
    assert gene_features(record) == [
        (0, 5, 1, "x5"),
        (9, 20, 1, "x0"),
        (29, 35, -1, "x2"),
        (39, 50, -1, "x2"),
        (59, 65, 1, "x3"),
        (89, 99, 1, "x5"),
    ]


def test_bases_and_annotation_of_a_store(genome, tmp_path):
    fasta, gff = genome
    write_store(tmp_path / "g.zarr", [fasta], [gff])
    write_store(tmp_path / "bare.zarr", [fasta])
    source = store_source(tmp_path / "g.zarr")
    assert source.lengths == {"a": 20, "b": 80} and source.kind is SequenceType.DNA
    assert source.open("b")(8, 12).tobytes() == b"AACC"
    # Coding sequence stands for genes; what goes on outside of the region is seen to do so.
    found = region_annotation(source, Region("b", 20, 55), None)
    assert found is not None
    assert sorted(found.genes) == [(19, 40, -1, ""), (50, 56, 1, "")]
    assert found.flags.tolist() == [34] * 20 + [0] * 10 + [1] * 5
    whole = region_annotation(source, Region("b", 0, 80), None)
    assert whole is not None
    assert sorted(whole.genes) == [(12, 40, -1, ""), (50, 60, 1, "")]
    assert region_annotation(store_source(tmp_path / "bare.zarr"), Region("b", 0, 9), None) is None


def test_bed_counts_from_zero_and_scores_in_thousandths(tmp_path):
    starts, ends = np.array([0, 4]), np.array([4, 9])
    write_bed(tmp_path / "x.bed", "c", starts, ends, "stage0", np.array([0.1234, 1.0]))
    assert (tmp_path / "x.bed").read_text() == "c\t0\t4\tstage0\t123\nc\t4\t9\tstage0\t1000\n"


def test_numbers_without_bigwig_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    places, values = np.array([3, 4, 9]), np.array([0.25, 1.0, 0.00004])
    path = write_values(tmp_path / "p", "c", 12, places, values)
    assert path.name == "p.bedgraph"
    (found,) = read_track_file(path, {"c": 12})
    assert found.starts.tolist() == [3, 4, 9] and found.ends.tolist() == [4, 5, 10]
    np.testing.assert_allclose(found.values, values, atol=5e-5)


def test_numbers_go_to_bigwig_where_it_is_there(tmp_path, monkeypatch):
    calls = []

    class File:
        def addHeader(self, header):
            calls.append(header)

        def addEntries(self, contigs, starts, ends, values):
            calls.append((contigs, starts, ends, values))

        def close(self):
            calls.append("closed")

    def open_file(path, mode):
        calls.append((path, mode))
        return File()

    module = types.ModuleType("pyBigWig")
    module.open = open_file  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyBigWig", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: module)
    path = write_values(tmp_path / "p", "c", 12, np.array([3, 9]), np.array([0.25, 1.0]))
    assert path.name == "p.bw"
    assert calls == [
        (str(path), "w"),
        [("c", 12)],
        (["c", "c"], [3, 9], [4, 10], [0.25, 1.0]),
        "closed",
    ]


def test_bigwig_through_the_library_itself_reads_back(tmp_path):
    pytest.importorskip("pyBigWig", reason="the extra bigwig is not installed")
    path = write_values(tmp_path / "p", "c", 12, np.array([3, 9]), np.array([0.25, 1.0]))
    (found,) = read_track_file(path, {"c": 12})
    assert found.starts.tolist() == [3, 9] and found.values.tolist() == [0.25, 1.0]
