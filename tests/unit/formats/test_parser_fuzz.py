"""Files that nobody would write: a refusal that names the file, or what an oracle reads.

Each parser gets good files, pieces of other formats, and edits of single places. The oracles read
line by line, as the formats' descriptions do, and share no code with the parsers.
"""

from __future__ import annotations

import gzip
import re
import zlib
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.annotation import read_annotation
from megatron_hyena.formats.fasta import read_pieces
from megatron_hyena.formats.maf import project_maf
from megatron_hyena.formats.sequences import read_sequences
from megatron_hyena.formats.sheet import read_sheet
from megatron_hyena.formats.track_files import read_track_file

MANY = settings(max_examples=120)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
NUCLEOTIDES = b"ACGTURYSWKMBDHVNacgturyswkmbdhvn"


def _lines(content: bytes) -> list[bytes]:
    """Lines that end in LF, CRLF or CR."""
    return re.split(rb"\r\n|\r|\n", content)


# FASTA -------------------------------------------------------------------------------------------


class RefusedError(Exception):
    """What an oracle does not take."""


def _fasta_oracle(content: bytes) -> list[tuple[str, bytes]]:
    records: list[tuple[str, bytes]] = []
    for line in _lines(content.removeprefix(b"\xef\xbb\xbf")):
        if line[:1] == b">":
            words = line[1:].decode("utf-8", "replace").split()
            if not words or words[0] in [name for name, _ in records]:
                raise RefusedError
            records.append((words[0], b""))
        else:
            bases = line.replace(b" ", b"").replace(b"\t", b"")
            if bases and (not records or any(base not in NUCLEOTIDES for base in bases)):
                raise RefusedError
            if bases:
                records[-1] = (records[-1][0], records[-1][1] + bases)
    if not records or any(not bases for _, bases in records):
        raise RefusedError
    return records


_FASTA_LINE = st.one_of(
    st.text("ACGTNacgtn", max_size=12).map(str.encode),
    st.sampled_from(
        [b">a", b">b x > y", b">c\tz", b">", b"> d", b"", b" ", b"\t", b"AC GT", b"U-"]
    ),
    st.sampled_from(
        [b">\xe9\xff", b"A>C", b"A\x00", b";x", b"ACGTX", b"\xef\xbb\xbf>a", b"12", b"*"]
    ),
    st.binary(max_size=4),
)


@settings(max_examples=300)
@given(st.lists(_FASTA_LINE, max_size=9), ENDS, st.integers(1, 30), st.booleans())
@example([b">a", b"ACG"], b"\r", 1, False)
@example([b">a", b"A" * 40, b"C" * 40, b"", b"G" * 20], b"\r\n", 1000, False)
def test_fasta(tmp_path_factory, lines, ends, block, last):
    content = ends.join(lines) + ends * last
    _check_fasta(tmp_path_factory.mktemp("fuzz") / "f.fa", content, block)


def _check_fasta(path: Path, content: bytes, block: int) -> None:
    path.write_bytes(content)
    try:
        expected = _fasta_oracle(content)
    except RefusedError:
        expected = []
    found: dict[str, bytes] = {}
    try:
        for piece in read_pieces(path, block):
            found[piece.record] = found.get(piece.record, b"") + piece.bases.tobytes()
    except UserError as error:
        assert "f.fa" in str(error)
        assert not expected, str(error)
        return
    assert list(found.items()) == expected


@MANY
@given(
    st.integers(20, 120),
    st.lists(st.integers(0, 4500), max_size=3),
    st.sampled_from([b"", b"\n", b"\r", b" ", b"-", b">z\n", b"\n>z\n", b"N", b"\x00"]),
    st.sampled_from([997, 4500, 1 << 20]),
    ENDS,
)
def test_straight_lines_with_something_in_between(
    tmp_path_factory, width, places, odd, block, ends
):
    """Blocks large enough that lines are read as a table."""
    bases = np.random.default_rng(width).choice(np.frombuffer(b"ACGTNacgt", np.uint8), 9000)
    rows = [bases[i : i + width].tobytes() for i in range(0, len(bases), width)]
    content = b">a\n" + ends.join(rows) + ends
    for place in places:
        content = content[:place] + odd + content[place + len(odd) % 2 :]
    _check_fasta(tmp_path_factory.mktemp("fuzz") / "f.fa", content, block)


# gzip --------------------------------------------------------------------------------------------

_PLAIN = b">a\n" + b"ACGTTGCATT\n" * 40 + b">b\nGG\n"


@MANY
@given(
    st.lists(st.integers(0, len(_PLAIN)), max_size=3), st.integers(0, 40), st.binary(max_size=12)
)
@example([], 0, b"\0\0")
@example([], 1, b"")
def test_gzip_members_cut_or_followed_by_something(tmp_path_factory, cuts, lost, behind):
    """Members one after another are one file; a cut or garbage is refused; zeros are padding."""
    edges = [0, *sorted(cuts), len(_PLAIN)]
    members = [gzip.compress(_PLAIN[a:b]) for a, b in pairwise(edges)]
    whole = b"".join(members)
    content = whole[: len(whole) - lost] + (behind if not lost else b"")
    path = tmp_path_factory.mktemp("fuzz") / "f.fa.gz"
    path.write_bytes(content)
    found: dict[str, bytes] = {}
    try:
        for piece in read_pieces(path, 100):
            found[piece.record] = found.get(piece.record, b"") + piece.bases.tobytes()
    except UserError as error:
        assert re.search(
            r"f\.fa\.gz.* (truncated|damaged|holds no sequence|no bases|no name)", str(error)
        )
        assert lost or behind.strip(b"\0")
        return
    # A cut between two members leaves a file that is whole as far as gzip tells.
    ends = dict(zip(accumulate(map(len, members)), edges[1:], strict=True))
    kept = ends[len(content)] if lost else len(_PLAIN)
    assert list(found.items()) == _fasta_oracle(_PLAIN[:kept])
    assert not behind.strip(b"\0") or lost


@MANY
@given(st.integers(0, 200), st.integers(0, 255))
def test_gzip_with_a_wrong_byte(tmp_path_factory, place, value):
    whole = bytearray(gzip.compress(_PLAIN, mtime=0))
    place %= len(whole)
    whole[place] = value
    path = tmp_path_factory.mktemp("fuzz") / "f.fa.gz"
    path.write_bytes(whole)
    try:
        found = b"".join(piece.bases.tobytes() for piece in read_sequences(path))
    except UserError as error:
        assert "f.fa.gz" in str(error)
        return
    # The checksum vouches for the contents; only the header's time, name and system may differ.
    assert found == b"ACGTTGCATT" * 40 + b"GG"
    assert zlib.crc32(_PLAIN) == int.from_bytes(whole[-8:-4], "little")


# Lines -------------------------------------------------------------------------------------------

_GFF = (
    b"##gff-version 3\n##sequence-region c 1 90\n"
    b"c\tx\tgene\t1\t9\t.\t+\t.\tID=g1\nc\tx\tCDS\t3\t8\t.\t-\t0\tID=d\n"
)
_BED = b"c\t10\t40\tn\t0\t-\t15\t33\t0\t2\t8,10\t0,20\n"
_GENBANK = (
    b"LOCUS       c   12 bp    DNA\nACCESSION   AC1\nVERSION     AC1.2\n"
    b"FEATURES             Location/Qualifiers\n     CDS             join(1..3,\n"
    b'                     complement(5..9))\n                     /gene="x"\n'
    b"ORIGIN\n        1 aaaaccccgg gg\n//\n"
)
_EMBL = (
    b"ID   X1; SV 1; linear; DNA; STD; HUM; 12 BP.\nAC   X1;\nFH   Key\n"
    b"FT   CDS             1..3\nSQ   Sequence 12 BP;\n     aaaaccccgg gg    12\n//\n"
)
_MAF = (
    b"##maf version=1\na score=1\ns h.c 2 4 + 10 AcG-T\ns m.d 0 5 - 10 ACGGT\n"
    b"\na\ns h.c 0 2 - 10 AC\n"
)
_BEDGRAPH = b"track type=bedGraph\nc\t0\t5\t1.5\nc\t7\t9\tnan\n"
_SHEET = b"path\tname\ttype\tweight\na.fa\tA\tdna\t2\nb.fa\tB\trna\t\n"
_TWO = bytes.fromhex(
    "4327411a0000000001000000000000000161160000000800000000000000000000000000000000"
)

_ODD = st.one_of(
    st.sampled_from([b"", b"\t", b" ", b"\n", b"\r", b"0", b"-1", b"99999999999999999999", b"1e9"]),
    st.sampled_from([b"(", b")", b"join(", b"..", b"<", b":", b"=", b";", b"%", b"%zz", b"//\n"]),
    st.sampled_from(
        [b"\xff", b"\xc2\xb2", b"\xd9\xa3", b"\x00", b'"', b"##FASTA\n", b">", b"+", b"N"]
    ),
    st.binary(min_size=1, max_size=3),
)
_EDITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), _ODD), min_size=1, max_size=3)


def _edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, lost, odd in edits:
        place %= len(content) + 1
        content = content[:place] + odd + content[place + lost :]
    return content


def _annotation(path: Path) -> list[object]:
    return [(r.names, r.length, r.features) for r in read_annotation(path)]


def _sequences(path: Path) -> list[object]:
    return [(p.record, p.start, p.bases.tobytes()) for p in read_sequences(path)]


def _alignment(path: Path) -> list[object]:
    projection = project_maf(path, path.parent, "h")
    try:
        told = [piece.bases.tobytes() for piece in projection.pieces(7, SequenceType.DNA)]
        return [projection.lengths, told, np.concatenate([*projection.identities()]).tobytes()]
    finally:
        projection.close()


def _track(path: Path) -> list[object]:
    rows = read_track_file(path, {"c": 20})
    return [(s.contig, s.starts.tolist(), s.ends.tolist(), repr(s.values.tolist())) for s in rows]


READERS = {
    "gff": (_annotation, _GFF),
    "bed": (_annotation, _BED),
    "genbank": (_annotation, _GENBANK),
    "embl": (_annotation, _EMBL),
    "genbank bases": (_sequences, _GENBANK),
    "embl bases": (_sequences, _EMBL),
    "2bit": (_sequences, _TWO),
    "maf": (_alignment, _MAF),
    "bedgraph": (_track, _BEDGRAPH),
    "sheet": (read_sheet, _SHEET),
}
TEXT = [name for name in READERS if name != "2bit"]


@settings(max_examples=400)
@given(st.sampled_from(sorted(READERS)), _EDITS, st.booleans())
@example("gff", [(60, 1, b"\xc2\xb2")], False)
@example("genbank", [(0, 400, b"LOCUS \n//\n")], False)
@example("embl", [(45, 0, b";\n")], False)
@example("genbank", [(170, 0, b"join(" * 3000)], False)
@example("bedgraph", [(24, 1, b"9" * 5000)], False)
def test_edited_files_are_read_or_refused(tmp_path_factory, name, edits, zipped):
    """Never another exception, and every refusal names the file."""
    reader, content = READERS[name]
    content = _edited(content, edits)
    path = tmp_path_factory.mktemp("fuzz") / "odd.file"
    path.write_bytes(gzip.compress(content) if zipped else content)
    try:
        reader(path)
    except UserError as error:
        assert "odd.file" in str(error)
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 1000


@pytest.mark.parametrize("name", TEXT)
def test_line_ends_blank_lines_and_gzip_change_nothing(tmp_path, name):
    reader, content = READERS[name]
    path = tmp_path / "f"
    path.write_bytes(content)
    expected = reader(path)
    assert expected
    variants = [content.replace(b"\n", ends) for ends in (b"\r\n", b"\r", b"\n\n")]
    variants += [content.rstrip(b"\n"), content + b"\n\n", b"\xef\xbb\xbf" + content]
    for variant in variants:
        for written in (variant, gzip.compress(variant[:50]) + gzip.compress(variant[50:])):
            path.write_bytes(written)
            assert repr(reader(path)) == repr(expected)


@MANY
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["c", "d%20e", "x y"]),
            st.sampled_from(["gene", "CDS", "odd type"]),
            st.integers(-1, 30).map(str) | st.sampled_from(["x", "", "1.5", "²", "1 ", "9" * 5000]),
            st.integers(0, 40).map(str),
            st.sampled_from(["+", "-", ".", "?", "*", ""]),
            st.sampled_from(["ID=a", 'gene_id "b"; x', "", "Parent=q"]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["\t", " ", "\t\t"]),
)
def test_gff_rows(tmp_path_factory, rows, blank):
    """Read as the columns say, or refused with the number of the first row that cannot be."""
    path = tmp_path_factory.mktemp("fuzz") / "f.gff"
    text = "##gff-version 3\n\n"
    for contig, kind, start, end, strand, attributes in rows:
        text += blank.join([contig, "s", kind, start, end, ".", strand, "."]) + f"\t{attributes}\n"
    path.write_text(text)
    expected: dict[str, list[tuple[str, int, int, int]]] = {}
    wrong = 0
    for number, (contig, kind, start, end, strand, _) in enumerate(rows, start=3):
        if (
            blank != "\t"
            or not re.fullmatch("[0-9]{1,15} ?", start)
            or strand not in "+-.?"
            or (int(start) > int(end) or not strand)
        ):
            wrong = number
            break
        place = (kind, int(start) - 1, int(end), {"+": 1, "-": -1}.get(strand, 0))
        expected.setdefault(contig.replace("%20", " "), []).append(place)
    try:
        records = read_annotation(path)
    except UserError as error:
        assert wrong, str(error)
        assert f"f.gff: row {wrong}" in str(error)
        return
    assert not wrong
    found = {
        record.names[0]: [(f.kind, *f.intervals[0]) for f in record.features] for record in records
    }
    assert found == expected


def test_a_line_without_end_is_refused_with_its_number(tmp_path):
    path = tmp_path / "f.gff"
    path.write_bytes(_GFF + b"c" * (1 << 25))
    with pytest.raises(UserError, match=r"f\.gff: line 5 is longer than 16 MiB"):
        read_annotation(path)


def test_a_line_of_a_hundred_megabytes(tmp_path):
    """Read in pieces, in memory that does not grow with the line."""
    import tracemalloc

    path = tmp_path / "f.fa"
    with path.open("wb") as file:
        file.write(b">a\n")
        for _ in range(100):
            file.write(b"ACGTN" * 200_000)
    tracemalloc.start()
    assert sum(len(piece.bases) for piece in read_pieces(path)) == 100_000_000
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()
