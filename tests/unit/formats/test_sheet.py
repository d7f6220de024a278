"""The sample sheet: what each cell becomes, and every sheet to refuse with line and column."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.sheet import COLUMNS, SampleRow, read_sheet


def _sheet(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "s.tsv"
    path.write_bytes(text.encode())
    return path


def test_all_columns(tmp_path):
    header = "\t".join(("split", "path", "name", "taxon", "type", "weight", "annotation", "tracks"))
    row = "valid\tg/a.fa.gz\tA-1\tEscherichia coli\tRNA\t0.5\ta.gff3, LTR=/b/c.bed\tx=x.bw,y = y.bg"
    path = _sheet(tmp_path, f"\ufeff{header}\r\n\r\n# a remark\r\n{row}\r\n")
    (found,) = read_sheet(path)
    assert found == SampleRow(
        name="A-1",
        path=tmp_path / "g/a.fa.gz",
        taxon="Escherichia coli",
        type=SequenceType.RNA,
        split="valid",
        weight=0.5,
        annotation=(tmp_path / "a.gff3", "LTR=/b/c.bed"),
        tracks={"x": tmp_path / "x.bw", "y": tmp_path / "y.bg"},
    )
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(found) == hash(found)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("g/E.coli.fasta.gz", "E.coli"),
        ("DB.FA", "DB"),
        ("/x/hg38.2bit", "hg38"),
        ("genomes/", "genomes"),
        ("s3://bucket/k/NC_1.2.gbff.gz", "NC_1.2"),
    ],
)
def test_defaults(tmp_path, path, name):
    (found,) = read_sheet(_sheet(tmp_path, f"path\n{path}\n"))
    place = path if "://" in path else tmp_path / path
    assert found == SampleRow(name, place, "", SequenceType.DNA, "", 1.0, (), {})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("path\n# nothing\n", "lists no samples"),
        ("file\na\n", "line 1: 'file' is no column of a sample sheet"),
        ("path\tpath\na\tb\n", "line 1: column 'path' stands twice"),
        ("\nname\na\n", "line 2: the column 'path' is missing"),
        ("path\ttaxon\na\n", "line 2 has 1 cells, but there are 2 columns"),
        ("path\ttaxon\n\tx\n", "line 2, column 'path': it is empty"),
        ("path\ttype\na\tdnaa\n", "line 2, column 'type': 'dnaa' is no sequence type"),
        ("path\tsplit\na\ttrain\nb\tdev\n", "line 3, column 'split': 'dev' is no split"),
        ("path\tweight\na\t0\n", "line 2, column 'weight': '0' is no finite number above 0"),
        ("path\tweight\na\tinf\n", "'inf' is no finite number"),
        ("path\tweight\na\tmuch\n", "'much' is no finite number"),
        ("path\tannotation\na\tx,,y\n", "line 2, column 'annotation': it is empty"),
        ("path\ttracks\na\tx.bw\n", "line 2, column 'tracks': 'x.bw' names no track"),
        ("path\ttracks\na\tx=1,x=2\n", "line 2, column 'tracks': the track 'x' stands twice"),
        ("path\tname\na\t../b\n", "line 2, column 'name': '../b' is no name of a sample"),
        ("path\n.fa\n", "line 2, column 'name': '.fa' is no name of a sample"),
        (
            "path\n*.fa.gz\n",
            "line 2: *.fa.gz is a glob, whose files make one sample; give it a name",
        ),
        ("path\nx/a.fa\n\ny/a.fa.gz\n", "line 4, column 'name': the sample 'a' is in line 2"),
    ],
)
def test_bad_sheets_are_refused_in_a_sentence(tmp_path, text, sentence):
    with pytest.raises(UserError, match=r"s\.tsv") as caught:
        read_sheet(_sheet(tmp_path, text))
    assert sentence in str(caught.value)


_CELL = st.sampled_from(
    ["", "a.fa", "b", "dna", "train", "2", "nan", "x=y", "é", " ", "#", "s3://x/y"]
)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from([*COLUMNS, "path", "name", "other", ""]), min_size=1, max_size=5),
    st.lists(st.lists(_CELL, min_size=1, max_size=5), max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_any_table_is_read_or_refused(tmp_path_factory, columns, rows, ends):
    """What is accepted is what the csv module reads; every refusal names the file."""
    folder = tmp_path_factory.mktemp("sheet")
    text = ends.join("\t".join(row) for row in [columns, *rows]) + ends
    path = _sheet(folder, text)
    try:
        found = read_sheet(path)
    except UserError as error:
        assert "s.tsv" in str(error)
        return
    lines = [row for row in text.splitlines() if row.strip() and not row.startswith("#")]
    table = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(found) == len(table)
    for row, cells in zip(found, table, strict=True):
        place = cells["path"].strip()
        assert str(row.path) == (place if "://" in place else str(folder / place))
        assert row.taxon == (cells.get("taxon") or "").strip()
        assert row.split == (cells.get("split") or "").strip()
        assert row.weight == float((cells.get("weight") or "").strip() or 1)
