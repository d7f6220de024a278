"""GenBank and EMBL as annotation and as sequence, against Biopython's writer and reader."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import zarr
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import CompoundLocation, SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation
from megatron_hyena.formats.features import Interval
from megatron_hyena.formats.sequences import read_sequences, sequence_format

FORMATS = {"genbank": "gb", "embl": "embl"}


def _sequences(path: Path, block: int = 1 << 20, kind=SequenceType.DNA) -> dict[str, bytes]:
    joined: dict[str, bytes] = {}
    for piece in read_sequences(path, block, kind):
        assert len(piece.bases) <= block
        assert piece.start == len(joined.get(piece.record, b""))
        joined[piece.record] = joined.get(piece.record, b"") + piece.bases.tobytes()
    return joined


@st.composite
def _records(draw) -> list[SeqRecord]:
    records = []
    for number in range(draw(st.integers(1, 3))):
        text = draw(st.text("ACGTN", min_size=1, max_size=200))
        record = SeqRecord(Seq(text), id=f"AB{number:06d}.{draw(st.integers(1, 3))}")
        record.annotations["molecule_type"] = "DNA"
        for kind in draw(st.lists(st.sampled_from(["gene", "CDS", "tRNA"]), max_size=4)):
            cuts = sorted(draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6)))
            spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]
            if spans:
                strand = draw(st.sampled_from([1, -1]))
                parts = [SimpleLocation(a, b, strand) for a, b in spans]
                place = parts[0] if len(parts) == 1 else CompoundLocation(parts[::strand])
                record.features.append(SeqFeature(place, kind, qualifiers={"gene": ["x/1"]}))
        records.append(record)
    return records


def _values(store, name: str) -> np.ndarray:
    array = store.group[name]
    assert isinstance(array, zarr.Array)
    return np.asarray(array)


@settings(max_examples=60)
@given(_records(), st.sampled_from(list(FORMATS)), st.integers(1, 80), st.integers(0, 3))
def test_what_biopython_writes(tmp_path_factory, records, form, block, ends):
    path = tmp_path_factory.mktemp("flat") / "a.txt"
    SeqIO.write(records, path, form)
    oracle = list(SeqIO.parse(path, form))
    lines = path.read_bytes().replace(b"\n", (b"\n", b"\r\n", b"\r", b"\n\n")[ends])
    path.write_bytes(gzip.compress(lines) if ends == 1 else lines)
    assert sequence_format(path) == "flat"
    assert _sequences(path, block) == {r.id: bytes(r.seq).upper() for r in oracle}
    for ours, theirs in zip(read_annotation(path), oracle, strict=True):
        assert theirs.id in ours.names
        assert ours.length == len(theirs)
        assert [f.kind for f in ours.features] == [f.type for f in theirs.features]
        for mine, other in zip(ours.features, theirs.features, strict=True):
            assert sorted(mine.intervals) == sorted(
                Interval(int(p.start), int(p.end), p.strand) for p in other.location.parts
            )
            assert mine.name == other.qualifiers["gene"][0]


def test_a_genbank_file_alone_is_its_fasta_and_its_features(
    tmp_path, chlamydia_store, chlamydia_files
):
    store = write_store(tmp_path / "genome.zarr", [chlamydia_files[1]])
    (contig,) = store.contigs
    (known,) = chlamydia_store.contigs
    with gzip.open(chlamydia_files[1], "rt") as file:
        assert contig.name == SeqIO.read(file, "genbank").id
    for name in ("bases", "tracks/features"):
        assert np.array_equal(_values(store, name), _values(chlamydia_store, name))
    assert contig.length == known.length
    assert store.attributes["composition"] == chlamydia_store.attributes["composition"]
    assert [s["role"] for s in store.attributes["sources"]] == ["sequence"]
    both = write_store(tmp_path / "both.zarr", [chlamydia_files[1]], [chlamydia_files[1]])
    assert np.array_equal(_values(both, "tracks/features"), _values(store, "tracks/features"))
    assert [s["role"] for s in both.attributes["sources"]] == ["sequence", "annotation"]


OLD_EMBL = """ID   HSERPG     standard; DNA; HUM; 12 BP.
XX
AC   X02158;
SV   X02158.1
FH   Key             Location/Qualifiers
FH
FT   CDS             join(1..3,
FT                   5..9)
FT                   /gene="EPO"
FT                   /note="a  feature 3..4"
SQ   Sequence 12 BP; 4 A; 4 C; 4 G; 0 T; 0 other;
     aaaaccccgg gg                                                             12
//
"""
PROTEIN = """LOCUS       P1   9 aa   linear   BCT 01-JAN-2000
ORIGIN
        1 mskgeelft
//
"""


def test_old_embl_and_genpept(tmp_path):
    old, protein = tmp_path / "old.embl", tmp_path / "p.gp"
    old.write_text(OLD_EMBL)
    protein.write_text(PROTEIN)
    assert _sequences(old) == {"X02158.1": b"AAAACCCCGGGG"}
    (record,) = read_annotation(old)
    assert record.names == ("HSERPG", "X02158", "X02158.1")
    assert (record.length, record.features[0].name) == (12, "EPO")
    assert record.features[0].intervals == (Interval(0, 3, 1), Interval(4, 9, 1))
    assert _sequences(protein, kind=SequenceType.PROTEIN) == {"P1": b"MSKGEELFT"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (OLD_EMBL.replace("12 BP.", "13 BP."), "says that it has 13 bases, but 12 follow"),
        (OLD_EMBL.replace("aaaac", "aaa-c"), "record 'X02158.1' holds '-' at position 4"),
        (OLD_EMBL.replace("aaaac", "aaaßc"), "record 'X02158.1' holds '?' at position 4"),
        (OLD_EMBL[:-3], "record 'HSERPG' has no '//' line at its end"),
        (OLD_EMBL + "and more\n", "line 14: 'and more' stands where a LOCUS or ID line"),
        (OLD_EMBL + OLD_EMBL, "two records are named 'X02158.1'"),
        (PROTEIN, "record 'P1' holds 'E' at position 5"),
        ("LOCUS  x 9 bp DNA\nCONTIG join(a:1..9)\n//\n", "record 'x' holds no sequence"),
        ("LOCUS \n//\n", "line 1: 'LOCUS ' stands where a LOCUS or ID line with a name"),
    ],
)
def test_bad_sequences_are_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.gb"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"bad\.gb") as caught:
        list(read_sequences(path))
    assert sentence in str(caught.value)


def test_a_bad_location_names_its_line(tmp_path):
    path = tmp_path / "bad.embl"
    path.write_text(OLD_EMBL.replace("5..9)", "5..x)"))
    with pytest.raises(UserError, match=r"bad\.embl: line 7: record 'HSERPG': CDS 'EPO'"):
        read_annotation(path)
