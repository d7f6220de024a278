"""BED rows as features: the labels they become, base by base, and every row to refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.labels import Label, label_genome
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation

BED12 = "chr\t10\t40\tnm\t0\t-\t15\t33\t0\t3\t8,4,10,\t0,12,20\n"


def _painted(path, kind=""):
    return label_genome(read_annotation(path, kind), {"o": (0, 5), "chr": (5, 50)}).paint(5, 55)


def test_a_row_with_blocks_is_a_transcript(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text(f"browser position chr1\ntrack name=x\n#chrom\tstart\tend\n\n{BED12}")
    expected = np.zeros(50, dtype=np.uint8)
    expected[10:40] |= int(Label.GENE)
    for start, end in ((10, 18), (22, 26), (30, 40)):
        expected[start:end] |= int(Label.EXON)
        expected[max(start, 15) : min(end, 33)] |= int(Label.CDS_MINUS)
    assert np.array_equal(_painted(path), expected)
    noncoding = BED12.replace("15\t33", "10\t10")
    path.write_text(noncoding)
    assert not np.any(_painted(path) & int(Label.CDS_MINUS | Label.CDS_PLUS))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 49), st.integers(1, 50), st.sampled_from("+-.")),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["CDS", "repeat_region", "exon"]),
    st.sampled_from(["\t", " "]),
    st.integers(3, 9),
)
def test_rows_without_blocks_label_as_told(tmp_path_factory, rows, kind, blank, columns):
    path = tmp_path_factory.mktemp("bed") / "a.bed"
    expected = np.zeros(50, dtype=np.uint8)
    text = ""
    for start, size, strand in rows:
        end = min(50, start + size)
        words = ["chr", str(start), str(end), "n", "0", strand, str(start), str(end), "0"]
        text += blank.join(words[:columns]) + "\n"
        for base in range(start, end):
            minus = kind == "CDS" and strand == "-" and columns > 5
            flags = {"CDS": 2 if minus else 1, "repeat_region": 64, "exon": 128}
            expected[base] |= flags[kind]
    path.write_text(text)
    assert np.array_equal(_painted(path, kind), expected)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("chr\t1\t5\n", "row 1 has no blocks, so BED does not tell what it is; give the file as"),
        ("# x\n\nchr\t5\t5\tn\n", "row 3 ends at 5, which is not behind its start 5"),
        ("chr\t1\t5\tn\t0\tx\n", "row 1 has the strand 'x'"),
        (BED12 + "chr\t1\tx\n", "row 2 is no BED row"),
        (BED12 + "chr\t1\n", "row 2 is no BED row"),
        (BED12.strip() + "\t1\n", "row 1 is no BED row"),
        (BED12.replace("\t3\t8", "\t2\t8"), "row 1 has thick ends or blocks that are no whole"),
        (BED12.replace("0,12,20", "0,12,21"), "row 1 has blocks that are empty or lie outside"),
        (BED12.replace("8,4,10", "8,0,10"), "row 1 has blocks that are empty or lie outside"),
        (BED12.replace("8,4,10", "8,٤,10"), "row 1 has thick ends or blocks that are no whole"),
    ],
)
def test_bad_rows_are_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "bad.bed"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.bed") as caught:
        read_annotation(path)
    assert sentence in str(caught.value)


def test_the_type_is_given_before_the_file(tmp_path):
    fasta, bed, gff = (tmp_path / name for name in ("a.fa", "a.bed", "a.gff"))
    fasta.write_text(">chr\n" + "ACGTA" * 10 + "\n")
    bed.write_text("chr\t10\t20\tAlu\n")
    gff.write_text("chr\tx\tgene\t1\t9\t.\t+\t.\tID=g\n")
    store = write_store(tmp_path / "genome.zarr", [fasta], [f"repeat_region={bed}", gff])
    track = store.track("features")
    assert np.flatnonzero(track.read("chr", 0, 50) & int(Label.REPEAT)).tolist() == [*range(10, 20)]
    assert track.attributes["counts"] == {"gene": 1, "repeat_region": 1}
    with pytest.raises(UserError, match="features of type 'Alu' label no base"):
        write_store(tmp_path / "x.zarr", [fasta], [f"Alu={bed}"])
    with pytest.raises(UserError, match=r"a\.gff is no BED file, .*; leave out CDS="):
        write_store(tmp_path / "x.zarr", [fasta], [f"CDS={gff}"])
