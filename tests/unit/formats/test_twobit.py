"""2bit files against a writer made from UCSC's description of the format, and every cut of one."""

from __future__ import annotations

import gzip
import struct
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.sequences import read_sequences, sequence_format
from megatron_hyena.formats.twobit import read_twobit

RECORDS = {
    "chr1": b"ACGTNNNNacgtnnACGTTTGCA",
    "chr2_x": b"g",
    "chr3": b"NNNN",
    "chr4": b"TTCA" * 40,
}


def _blocks(truths: list[bool]) -> list[tuple[int, int]]:
    """Start and size of each run of True."""
    found, at = [], 0
    for truth, run in groupby(truths):
        size = len(list(run))
        if truth:
            found.append((at, size))
        at += size
    return found


def _two_bit(records: dict[str, bytes], order: str = "<", version: int = 0) -> bytes:
    """Signature, version, count, 0; the index; then the records, one number at a time."""

    def number(value: int) -> bytes:
        return struct.pack(order + "I", value)

    bodies = []
    for sequence in records.values():
        text = sequence.decode()
        body = number(len(text))
        for blocks in (_blocks([c in "Nn" for c in text]), _blocks([c.islower() for c in text])):
            body += number(len(blocks))
            body += b"".join(number(start) for start, _ in blocks)
            body += b"".join(number(size) for _, size in blocks)
        body += number(0)
        codes = ["TCAG".index(c) if c in "TCAG" else 0 for c in text.upper()]
        codes += [0] * (-len(codes) % 4)
        for i in range(0, len(codes), 4):
            a, b, c, d = codes[i : i + 4]
            body += bytes([a * 64 + b * 16 + c * 4 + d])
        bodies.append(body)
    wide = "Q" if version else "I"
    offset = 16 + sum(1 + len(name) + struct.calcsize(wide) for name in records)
    index = b""
    for name, body in zip(records, bodies, strict=True):
        index += bytes([len(name)]) + name.encode() + struct.pack(order + wide, offset)
        offset += len(body)
    head = number(0x1A412743) + number(version) + number(len(records)) + number(0)
    return head + index + b"".join(bodies)


def _read(path: Path, block: int = 1 << 20) -> dict[str, bytes]:
    joined: dict[str, bytes] = {}
    for piece in read_twobit(path, block):
        assert len(piece.bases) <= max(4, block)
        assert piece.start == len(joined.get(piece.record, b""))
        joined[piece.record] = joined.get(piece.record, b"") + piece.bases.tobytes()
        text = piece.bases.tobytes()
        told = (piece.tally.gc, piece.tally.unknown, piece.tally.lower)
        assert told[1:] == (sum(c in b"Nn" for c in text), sum(c > 96 for c in text))
        assert told[0] == sum(c in b"GCgc" for c in text)
    return joined


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("block", [1, 5, 8, 1 << 20])
def test_both_orders_and_versions(tmp_path, order, version, block):
    path = tmp_path / "a.2bit"
    path.write_bytes(_two_bit(RECORDS, order, version))
    assert sequence_format(path) == "2bit"
    assert list(_read(path, block).items()) == list(RECORDS.items())


@settings(max_examples=80)
@given(
    st.dictionaries(
        st.text("abcXYZ019._", min_size=1, max_size=9),
        st.text("ACGTNacgtn", min_size=1, max_size=70).map(str.encode),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from("<>"),
    st.integers(0, 1),
    st.integers(1, 40),
)
def test_any_sequences_come_back(tmp_path_factory, records, order, version, block):
    path = tmp_path_factory.mktemp("two") / "a.2bit"
    path.write_bytes(_two_bit(records, order, version))
    assert list(_read(path, block).items()) == list(records.items())


@pytest.mark.parametrize("version", [0, 1])
def test_every_cut_is_refused(tmp_path, version):
    whole = _two_bit(RECORDS, version=version)
    path = tmp_path / "cut.2bit"
    for size in range(4, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut\.2bit: the file ends within its"):
            _read(path)


@settings(max_examples=150)
@given(st.integers(4, len(_two_bit(RECORDS)) - 1), st.integers(0, 255))
@example(8, 255)
def test_any_wrong_byte_is_refused_or_read(tmp_path_factory, place, value):
    """What a byte says may be another sequence, but nothing else than a refusal may come of it."""
    content = bytearray(_two_bit(RECORDS))
    content[place] = value
    path = tmp_path_factory.mktemp("two") / "a.2bit"
    path.write_bytes(content)
    try:
        found = _read(path)
    except UserError as error:
        assert "a.2bit" in str(error)
        return
    assert sum(map(len, found.values())) <= 4 * len(content)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (_two_bit({"a": b"ACGT"}, version=2), "is 2bit of version 2; versions 0 and 1 are known"),
        (_two_bit({}), "holds no sequence"),
        (_two_bit({"a": b""}), "record 'a' has no bases"),
        (_two_bit({"": b"AC"}), "record 1 has no name"),
        (_two_bit({"a": b"AC", "b": b"AC"}).replace(b"\x01b", b"\x01a"), "two records are named"),
        (gzip.compress(_two_bit(RECORDS), mtime=0), "is 2bit within gzip; unzip it first"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.2bit"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.2bit") as caught:
        list(read_sequences(path))
    assert sentence in str(caught.value)


def test_blocks_outside_the_record_and_other_types(tmp_path):
    path = tmp_path / "a.2bit"
    content = _two_bit({"a": b"ACNN"})
    path.write_bytes(content.replace(struct.pack("<II", 2, 2), struct.pack("<II", 2, 3)))
    with pytest.raises(UserError, match="'a' has 4 bases, but a stretch of N that ends at 5"):
        _read(path)
    with pytest.raises(UserError, match="holds nucleotides, not protein"):
        list(read_sequences(path, kind=SequenceType.PROTEIN))
