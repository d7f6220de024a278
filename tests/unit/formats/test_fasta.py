"""The FASTA reader: every layout it must take, every file it must refuse."""

from __future__ import annotations

import bz2
import gzip
import lzma

import pytest
from Bio.SeqIO.FastaIO import SimpleFastaParser

from megatron_hyena.errors import UserError
from megatron_hyena.formats.fasta import read_fasta, read_pieces

TEXT = ">one first record\nACGTN\nacgtn\n\nRYK\n>two\tx > y\r\nGG\r\n\r\nTT\r\n>three\nC"
RECORDS = [("one", b"ACGTNacgtnRYK"), ("two", b"GGTT"), ("three", b"C")]


def _records(path):
    return [(name, bases.tobytes()) for name, bases in read_fasta(path)]


@pytest.mark.parametrize("zipped", [False, True])
def test_wrapped_blank_crlf_lower_case(tmp_path, zipped):
    path = tmp_path / "a.fa"
    path.write_bytes(gzip.compress(TEXT.encode()) if zipped else TEXT.encode())
    assert _records(path) == RECORDS


@pytest.mark.parametrize("block", range(1, 40))
def test_any_block_size_gives_the_same(tmp_path, block):
    path = tmp_path / "a.fa"
    path.write_bytes(TEXT.encode())
    joined: dict[str, bytes] = {}
    for piece in read_pieces(path, block):
        assert len(piece.bases) <= block
        assert piece.start == len(joined.get(piece.record, b""))
        joined[piece.record] = joined.get(piece.record, b"") + piece.bases.tobytes()
    assert list(joined.items()) == RECORDS


def test_gzip_members_one_after_another_are_one_file(tmp_path):
    path = tmp_path / "a.fa.gz"
    half = len(TEXT) // 2
    path.write_bytes(gzip.compress(TEXT[:half].encode()) + gzip.compress(TEXT[half:].encode()))
    assert _records(path) == RECORDS


def test_chlamydia_is_as_biopython_reads_it(chlamydia_files):
    ((name, bases),) = read_fasta(chlamydia_files[0])
    with gzip.open(chlamydia_files[0], "rt") as file:
        ((title, sequence),) = SimpleFastaParser(file)
    assert name == title.split()[0] == "CHLTCG"
    assert len(bases) == 1_042_519
    assert bases.tobytes() == sequence.encode()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "bad.fa is empty"),
        (b"\n \n", "holds no sequence: it is empty"),
        (gzip.compress(b"", mtime=0), "holds no sequence: it is empty"),
        (b"ACGT\n", "is not FASTA: it begins with 'A'"),
        (b"@read1\nACGT\n+\nIIII\n", "is not FASTA: it begins with '@'"),
        (bz2.compress(b">a\nACGT\n"), "is compressed by bzip2; unpack it, or use gzip"),
        (lzma.compress(b">a\nACGT\n"), "is compressed by xz; unpack it, or use gzip"),
        (b">\nACGT\n", "record 1 has no name"),
        (b">a\nAC\n>a again\nGT\n", "two records are named 'a'"),
        (b">a\n>b\nGT\n", "record 'a' has no bases"),
        (b">a\nGT\n>b\n", "record 'b' has no bases"),
        (b">a\nGT\n>b", "record 'b' has no bases"),
        (b">a\nACGT\n>b\nACG\nT\nAXG\n", "record 'b' holds 'X' at position 6"),
        (b">a\nAC-GT\n", "record 'a' holds '-' at position 3"),
        (b">a\nACGT>b\nGT\n", "record 'a' holds '>' at position 5"),
        (b">a\nAC\xe9\n", "record 'a' holds 'é' at position 3"),
        (b">" + b"x" * (1 << 21), "the header of record 1 does not end"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.fa"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.fa") as caught:
        list(read_pieces(path))
    assert sentence in str(caught.value)


def test_position_of_a_stray_counts_over_blocks(tmp_path):
    path = tmp_path / "bad.fa"
    path.write_bytes(b">a\n" + b"ACGTACGTAC\n" * 100 + b"ACGJ\n")
    with pytest.raises(UserError, match="holds 'J' at position 1004"):
        list(read_pieces(path, 64))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.fa does not exist"):
        list(read_pieces(tmp_path / "nowhere.fa"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_pieces(tmp_path))


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.00005])
def test_truncated_gzip(tmp_path, chlamydia_files, kept):
    whole = chlamydia_files[0].read_bytes()
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(UserError, match=r"cut\.fa\.gz is a truncated gzip file"):
        list(read_pieces(path))


def _bgzf(content: bytes) -> bytes:
    """One block of blocked gzip, its size in an extra field of the header."""
    plain = gzip.compress(content, mtime=0)
    size = len(plain) + 8 - 1
    extra = b"\x06\x00BC\x02\x00" + size.to_bytes(2, "little")
    return plain[:3] + b"\x04" + plain[4:10] + extra + plain[10:]


def test_bgzip_cut_between_two_blocks_is_truncated(tmp_path):
    end = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
    path = tmp_path / "a.fa.gz"
    path.write_bytes(_bgzf(b">a\nAC\n") + _bgzf(b"GT\n") + end)
    assert _records(path) == [("a", b"ACGT")]
    path.write_bytes(_bgzf(b">a\nAC\n"))
    with pytest.raises(UserError, match="truncated gzip"):
        list(read_pieces(path))


def test_damaged_gzip(tmp_path, chlamydia_files):
    """Wrong checksum at the end; a wrong block in the middle; something else behind it."""
    content = chlamydia_files[0].read_bytes()
    path = tmp_path / "bad.fa.gz"
    for damaged in (
        content[:-8] + bytes(4) + content[-4:],
        content[:20] + b"\xff" * 100 + content[120:],
        content + b"something else",
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad\.fa\.gz is a damaged gzip file \(.+\)"):
            list(read_pieces(path))
