"""GenBank and GFF3 features against Biopython, and the labels they become."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from Bio.SeqFeature import Location

from megatron_hyena.corpus.labels import Label, label_genome
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation
from megatron_hyena.formats.features import AnnotatedRecord, Feature, Interval
from megatron_hyena.formats.location import parse_location

CONTIG = {"chr": (0, 100)}


def test_chlamydia_features_are_biopythons(chlamydia_files):
    (record,) = read_annotation(chlamydia_files[1])
    with gzip.open(chlamydia_files[1], "rt") as file:
        oracle = SeqIO.read(file, "genbank")
    assert record.names == ("CHLTCG", "CG0037")
    assert record.length == len(oracle.seq) == 1_042_519
    assert len(record.features) == len(oracle.features) == 976
    for ours, theirs in zip(record.features, oracle.features, strict=True):
        assert ours.kind == theirs.type
        assert ours.strand == theirs.location.strand
        assert sorted(ours.intervals) == sorted(
            Interval(int(p.start), int(p.end), p.strand) for p in theirs.location.parts
        )
        if ours.kind == "CDS":
            assert ours.name == theirs.qualifiers.get("gene", [""])[0]


@pytest.mark.parametrize(
    "text",
    [
        "7",
        "3..9",
        "<1..>9",
        "complement(3..9)",
        "join(1..2,5..9)",
        "order(1..2,5..9)",
        "complement(join(1..2,5..9,12))",
        "join(complement(5..9),complement(1..2))",
        "join(complement(5..9),11..20)",
        "complement(order(<1..2,5..>9))",
        "(3.5)..9",
        "3..(9.12)",
    ],
)
def test_locations_are_biopythons(text):
    oracle = Location.fromstring(text).parts
    assert sorted(parse_location(text)) == sorted(
        Interval(int(part.start), int(part.end), part.strand) for part in oracle
    )


def test_parts_elsewhere_and_sites_between_bases_label_nothing():
    assert parse_location("join(J00194.1:100..202,1..4)") == [Interval(0, 4, 1)]
    assert parse_location("12^13") == []


def test_operators_nest():
    assert parse_location("complement(order(<1..2,join(5..6,complement(8..>9))))") == [
        Interval(0, 2, -1),
        Interval(4, 6, -1),
        Interval(7, 9, 1),
    ]


@pytest.mark.parametrize("text", ["", "a..b", "9..3", "gap(5)", "join(1..2"])
def test_unreadable_locations(text):
    with pytest.raises(ValueError, match=r"cannot be read|ends before it starts"):
        parse_location(text)


def _genbank(tmp_path: Path, *rows: str, locus: str = "chr", length: int = 100) -> Path:
    lines = [f"LOCUS       {locus}    {length} bp    DNA   linear  BCT 01-JAN-2000"]
    lines += ["ACCESSION   AC1", "VERSION     AC1.2", "FEATURES             Location/Qualifiers"]
    for row in rows:
        kind, location = row.split(maxsplit=1)
        lines += [f"     {kind:<16}{location}", '                     /gene="abc"']
    path = tmp_path / "a.gbk"
    path.write_text("\n".join([*lines, "ORIGIN", "//", ""]))
    return path


def _gff(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "a.gff3"
    lines = [row if row.startswith("#") else "\t".join(row.split()) for row in rows]
    path.write_text("##gff-version 3\n" + "\n".join(lines) + "\n")
    return path


def test_labels_of_a_genbank_record(tmp_path):
    path = _genbank(
        tmp_path,
        "gene 1..20",
        "CDS join(3..8,11..14)",
        "CDS complement(13..18)",
        "tRNA 30..32",
        "rRNA 31..40",
        "repeat_region 50..51",
        "misc_RNA 60",
        "source 1..100",
    )
    labels = label_genome(read_annotation(path), {"other": (0, 5), "chr": (5, 100)})
    track = labels.paint(0, 105)[5:]
    expected = np.zeros(100, dtype=np.uint8)
    expected[0:20] |= int(Label.GENE)
    expected[2:8] |= int(Label.CDS_PLUS)
    expected[10:14] |= int(Label.CDS_PLUS)
    expected[12:18] |= int(Label.CDS_MINUS)
    expected[29:32] |= int(Label.TRNA)
    expected[30:40] |= int(Label.RRNA)
    expected[49:51] |= int(Label.REPEAT)
    expected[59] |= int(Label.OTHER_RNA)
    assert np.array_equal(track, expected)
    pieces = [labels.paint(start, min(start + 7, 105)) for start in range(0, 105, 7)]
    assert np.array_equal(np.concatenate(pieces)[5:], expected)
    assert labels.counts["CDS"] == 2


def test_gff_equals_genbank(tmp_path):
    rows = (
        "##sequence-region chr 1 100",
        "chr x gene 1 20 . + . ID=gene1",
        "chr x CDS 3 8 . + 0 ID=c;Parent=m",
        "chr x CDS 11 14 . + 0 ID=c;Parent=m",
        "chr x CDS 13 18 . - 0 ID=d",
        "# a remark",
        "chr x tRNA 30 32 . . . ID=t",
    )
    gff = label_genome(read_annotation(_gff(tmp_path, *rows)), CONTIG)
    features = ("gene 1..20", "CDS join(3..8,11..14)", "CDS complement(13..18)", "tRNA 30..32")
    genbank = label_genome(read_annotation(_genbank(tmp_path, *features)), CONTIG)
    assert np.array_equal(gff.paint(0, 100), genbank.paint(0, 100))
    (record,) = read_annotation(tmp_path / "a.gff3")
    assert record.length == 100
    assert record.features[1].name == "c"


def test_circular_landmark_of_gff_folds_back(tmp_path):
    path = _gff(
        tmp_path,
        "chr x region 1 100 . + . ID=chr;Is_circular=true",
        "chr x CDS 96 103 . + 0 ID=c",
    )
    track = label_genome(read_annotation(path), CONTIG).paint(0, 100)
    assert np.flatnonzero(track).tolist() == [0, 1, 2, 95, 96, 97, 98, 99]


@pytest.mark.parametrize("end", ["101", ">101"])
def test_genbank_feature_outside_its_record(tmp_path, end):
    path = _genbank(tmp_path, "CDS 1..6", f"CDS complement(join(1..3,90..{end}))")
    with pytest.raises(UserError) as caught:
        label_genome(read_annotation(path), CONTIG)
    sentence = str(caught.value)
    for part in (str(path), "'chr'", "CDS 'abc'", "90..101", "100 bases"):
        assert part in sentence


def test_position_zero_is_outside(tmp_path):
    with pytest.raises(UserError, match=r"CDS 'abc' at 0\.\.6 lies outside"):
        label_genome(read_annotation(_genbank(tmp_path, "CDS 0..6")), CONTIG)


def test_gff_feature_outside_its_record(tmp_path):
    path = _gff(tmp_path, "chr x CDS 90 101 . + 0 ID=c7")
    with pytest.raises(UserError, match=r"'chr': CDS 'c7' at 90\.\.101 lies outside"):
        label_genome(read_annotation(path), CONTIG)


def test_another_length_is_another_assembly(tmp_path):
    path = _genbank(tmp_path, "CDS 1..6", length=99)
    with pytest.raises(UserError, match=r"'chr' has 99 bases, but the FASTA record 'chr' has 100"):
        label_genome(read_annotation(path), CONTIG)


@pytest.mark.parametrize("contig", ["chr", "AC1", "AC1.2", "AC1.7", "anything"])
def test_names_that_match(tmp_path, contig):
    labels = label_genome(read_annotation(_genbank(tmp_path, "CDS 1..6")), {contig: (0, 100)})
    assert labels.paint(0, 100)[:6].all()


def test_names_that_do_not_match(tmp_path):
    record = read_annotation(_genbank(tmp_path, "CDS 1..6"))
    for contigs in ({"x": (0, 99)}, {"x": (0, 100), "y": (100, 100)}):
        with pytest.raises(UserError) as caught:
            label_genome(record, contigs)
        for name in ("'chr'", "'AC1'", *map(repr, contigs)):
            assert name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        (">a\nACGT\n", "is neither GenBank, EMBL, GFF3, GTF nor BED: it begins with '>a'"),
        ("##gff-version 3\n", "holds no GFF3 feature rows"),
        ("##gff-version 3\nchr\tx\tCDS\t1\n", "row 2 is no GFF3 row"),
        ("chr\tx\tCDS\t9\t3\t.\t+\t0\tID=q\n", "row 1: CDS 'q' ends before it starts"),
        (
            "LOCUS       chr 9 bp DNA\nFEATURES \n     CDS             1..5\n",
            "record 'chr' has no '//' line",
        ),
        ("LOCUS       chr 9 bp DNA\nORIGIN\n", "no '//' line"),
        (
            "LOCUS       chr 9 bp DNA\nFEATURES \n     CDS             1..x\nORIGIN\n//\n",
            "the location '1..x' cannot be read",
        ),
    ],
)
def test_bad_annotation_files(tmp_path, content, sentence):
    path = tmp_path / "bad.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=r"bad\.txt") as caught:
        read_annotation(path)
    assert sentence in str(caught.value)


def test_mixed_strands_have_none():
    feature = Feature("CDS", "", (Interval(0, 1, 1), Interval(2, 3, -1)))
    assert feature.strand == 0
    record = AnnotatedRecord(Path("x"), ("chr",), None, False, (feature,))
    assert label_genome([record], CONTIG).paint(0, 4).tolist() == [1, 0, 2, 0]
