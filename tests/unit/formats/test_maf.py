"""An alignment as the genome of one row, against a placing base by base and Biopython's reader."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from Bio import AlignIO
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.data.alphabet import SequenceType, reverse_complement
from megatron_hyena.errors import UserError
from megatron_hyena.formats.maf import project_maf
from megatron_hyena.formats.sequences import read_sequences, sequence_format

MAF = """##maf version=1 scoring=x
# a remark

a score=1
s hg.chr2 2 4 + 10 AcG-T
i hg.chr2 N 0 C 0
s mm.c.1  0 5 - 10 ACGGT
q mm.c.1           99999
s rn.x    7 2 + 10 a---t

a score=2
s mm.c.1  0 2 + 10 AC
e hg.chr1 0 3 + 9 I

a score=3
s mm.c.1  0 2 + 10 AT
s hg.chr1 0 3 - 9  AcN
""".replace("s mm.c.1  0 2 + 10 AT", "s mm.c.1  0 3 + 10 ATN")


def _projected(path: Path, reference: str | None = None, block: int = 1 << 20):
    projection = project_maf(path, path.parent, reference)
    try:
        names = list(projection.lengths)
        bases: dict[str, bytes] = dict.fromkeys(names, b"")
        for piece in projection.pieces(block, SequenceType.DNA):
            bases[piece.record] += piece.bases.tobytes()
        return bases, np.concatenate(list(projection.identities(block)))
    finally:
        projection.close()


def test_blocks_are_put_in_their_places(tmp_path):
    path = tmp_path / "a.maf"
    path.write_text(MAF)
    assert sequence_format(path) == "maf"
    bases, identity = _projected(path, "hg")
    assert bases == {"chr2": b"NNAcGTNNNN", "chr1": b"NNNNNNNgT"}
    nan = np.nan
    chr2 = [nan, nan, 1, 0.5, 0.5, 1, nan, nan, nan, nan]
    # The opposite strand: N against N, c against T, A against A, from the left.
    assert np.array_equal(identity[:10], np.array(chr2, dtype=np.float32), equal_nan=True)
    assert np.array_equal(
        identity[10:], np.array([nan] * 6 + [1, 0, 1], dtype=np.float32), equal_nan=True
    )
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_rows_species_is_the_default(tmp_path):
    path = tmp_path / "a.maf"
    path.write_text(MAF)
    assert _projected(path)[0] == _projected(path, "hg")[0]
    assert _projected(path, "hg.chr1")[0] == {"hg.chr1": b"NNNNNNNgT"}
    with pytest.raises(UserError, match=r"a\.maf has no row of 'h'; .* has rows of hg, mm, rn"):
        _projected(path, "h")
    with pytest.raises(UserError, match=r"line 16: mm.c.1:0-3 overlaps another block"):
        _projected(path, "mm")


def _brute(path: Path, reference: str):
    """Place Biopython's rows base by base."""
    bases: dict[str, list[str]] = {}
    identity: dict[str, list[float]] = {}
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for block in AlignIO.parse(file, "maf"):
            for row in block:
                if not row.id.startswith(reference + "."):
                    continue
                others = [other for other in block if other is not row]
                name, told = row.id.removeprefix(reference + "."), row.annotations
                total, start = told["srcSize"], told["start"]
                bases.setdefault(name, ["N"] * total)
                identity.setdefault(name, [float("nan")] * total)
                column_of = [i for i, letter in enumerate(row.seq) if letter != "-"]
                for offset, column in enumerate(column_of):
                    letter, place = row.seq[column], start + offset
                    equal = [other.seq[column].upper() == letter.upper() for other in others]
                    if told["strand"] == -1:
                        place = total - 1 - place
                        letter = letter.translate(str.maketrans("ACGTacgt", "TGCAtgca"))
                    bases[name][place] = letter
                    identity[name][place] = sum(equal) / len(equal) if equal else float("nan")
    joined = {name: "".join(letters).encode() for name, letters in bases.items()}
    return joined, np.array([v for values in identity.values() for v in values], dtype=np.float32)


@st.composite
def _alignments(draw) -> str:
    """Disjoint stretches of two contigs, on both strands, in any order, with other rows."""
    blocks = []
    for contig, total in (("c1", 60), ("c.2", 33)):
        cuts = sorted(draw(st.sets(st.integers(0, total), min_size=2, max_size=8)))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False):
            letters = draw(st.text("ACGTNacgt", min_size=end - start, max_size=end - start))
            gaps = draw(st.lists(st.integers(0, end - start), max_size=3))
            for gap in gaps:
                letters = letters[:gap] + "-" + letters[gap:]
            strand = draw(st.sampled_from("+-"))
            first = total - end if strand == "-" else start
            rows = [f"s ref.{contig} {first} {end - start} {strand} {total} {letters}"]
            for number in range(draw(st.integers(0, 3))):
                size = len(letters)
                other = draw(st.text("ACGT-acgt", min_size=size, max_size=size))
                bases = size - other.count("-")
                rows.append(f"s o{number}.x 0 {bases} + 100 {other}")
            blocks.append("a score=0\n" + "\n".join(draw(st.permutations(rows))) + "\n\n")
    return "##maf version=1\n" + "".join(draw(st.permutations(blocks)))


@settings(max_examples=80)
@given(_alignments(), st.integers(1, 50), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_alignment_is_as_placed_base_by_base(tmp_path_factory, text, block, ends):
    folder = tmp_path_factory.mktemp("maf")
    plain, path = folder / "plain.maf", folder / "a.maf.gz"
    plain.write_text(text)
    path.write_bytes(gzip.compress(text.replace("\n", ends).encode()))
    bases, identity = _brute(plain, "ref")
    found, values = _projected(path, "ref", block)
    assert list(found.items()) == list(bases.items())
    np.testing.assert_array_equal(values, identity)


def test_the_store_has_bases_and_conservation(tmp_path):
    path, fasta = tmp_path / "a.maf", tmp_path / "b.fa"
    path.write_text(MAF)
    fasta.write_text(">other\nACGTA\n")
    store = write_store(tmp_path / "genome.zarr", [fasta, path], maf_reference="hg")
    bases, identity = _brute(path, "hg")
    assert [contig.name for contig in store.contigs] == ["other", "chr2", "chr1"]
    assert store.read("chr2", 0, 10).tobytes() == bases["chr2"]
    track = store.track("conservation")
    assert np.isnan(track.read("other", 0, 5)).all()
    found = np.concatenate([track.read("chr2", 0, 10), track.read("chr1", 0, 9)])
    np.testing.assert_array_equal(found, identity)
    assert track.attributes["known"] == 7
    assert (track.attributes["least"], track.attributes["greatest"]) == (0, 1)
    assert [s.get("reference") for s in store.attributes["sources"]] == [None, "hg"]
    with pytest.raises(UserError, match="'conservation', and --track gives it too"):
        write_store(tmp_path / "x.zarr", [path], tracks={"conservation": fasta})
    with pytest.raises(UserError, match="--maf-reference hg is given, but no file is MAF"):
        write_store(tmp_path / "x.zarr", [fasta], maf_reference="hg")
    with pytest.raises(UserError, match=r"a\.maf is MAF; turn it into a genome store"):
        list(read_sequences(path))
    path.write_text("##maf\na\ns hg.c 0 4 + 4 ACGT\n")
    with pytest.raises(UserError, match="no row beside the reference's"):
        write_store(tmp_path / "x.zarr", [path])
    assert reverse_complement(np.frombuffer(b"AcN", np.uint8)).tobytes() == b"NgT"


ROW = "s hg.c 0 4 + 10 ACGT"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "holds no alignment blocks"),
        (["s hg.c 0 4 + 10"], "line 3 is no MAF row"),
        (["a", "", "s hg.c 0 4 + 10 ACGT", "", "s hg.c 0 4 + 10 ACGT"], "line 7 is a second row"),
        (["s hg.c 0 4 * 10 ACGT"], "line 3 is no MAF row"),
        (["s hg.c -1 4 + 10 ACGT"], "line 3 is no MAF row"),
        (["s hg.c 8 4 + 10 ACGT"], "line 3: hg.c is said to have 10 bases, but the row ends at 12"),
        (["s hg.c 0 5 + 10 ACGT"], "line 3 says that it has 5 bases, but 4 follow"),
        ([ROW, "s mm.c 0 3 + 10 ACG"], "line 4 has 3 columns, but line 3 of the same block has 4"),
        ([ROW, "s hg.d 0 4 + 10 ACGT"], "line 4 is a second row of 'hg' in one block"),
        ([ROW, "", "a", "s hg.c 6 4 - 10 ACGT"], "line 6: hg.c:0-4 overlaps another block"),
        ([ROW, "", "a", "s hg.c 4 4 + 11 ACGT"], "line 6: hg.c has 11 bases here, but 10 before"),
        ([ROW, "what is this"], "line 4: 'what is this' is no line of a MAF file"),
        (["s hg.c 0 4 + 10 AC!T"], "record 'c' holds '!' at position 3"),
    ],
)
def test_bad_alignments_are_refused_in_a_sentence(tmp_path, rows, sentence):
    path = tmp_path / "bad.maf"
    path.write_text("\n".join(["##maf version=1", "a score=0", *rows, ""]))
    with pytest.raises(UserError, match=r"bad\.maf") as caught:
        write_store(tmp_path / "genome.zarr", [path])
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]
