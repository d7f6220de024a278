"""bigWig against a writer made from the paper's tables, against pyBigWig, and damaged."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.errors import UserError
from megatron_hyena.formats.track_files import check_track_file, read_track_file

LENGTHS = {"a": 1000, "b": 40, "c": 700}
Row = tuple[str, int, int, float]


def _rows(seed: int, span: int | None = None) -> list[Row]:
    """Disjoint rows of `a` and `c`, all `span` long if given."""
    draw = np.random.default_rng(seed)
    rows: list[Row] = []
    for contig in ("a", "c"):
        cuts = np.sort(draw.choice(LENGTHS[contig] // 10, 40, replace=False)) * 10
        sizes = draw.integers(1, 11, 40) if span is None else np.full(40, span)
        numbers = draw.normal(size=40).astype(np.float32).tolist()
        rows += [
            (contig, int(s), int(s) + int(n), v)
            for s, n, v in zip(cuts, sizes, numbers, strict=True)
        ]
    return rows


def _bigwig(
    rows: list[Row],
    lengths: dict[str, int] = LENGTHS,
    *,
    order: str = "<",
    kind: int = 1,
    zipped: bool = True,
    children: int = 3,
    slots: int = 7,
) -> bytes:
    """Tables 5 to 14: header, contigs in one leaf, blocks of `slots` rows, an index above them."""

    def pack(form: str, *values) -> bytes:
        return struct.pack(order + form, *values)

    numbers = {name: i for i, name in enumerate(lengths)}
    key = max(map(len, lengths))
    tree = pack("IIIIQQ", 0x78CA8C91, 256, key, 8, len(lengths), 0)
    tree += pack("BBH", 1, 0, len(lengths))
    for name, number in numbers.items():
        tree += name.encode().ljust(key, b"\0") + pack("II", number, lengths[name])
    place = 64 + len(tree) + 8
    data, leaves, largest = pack("Q", 0), [], 0
    for contig in lengths:
        some = [row for row in rows if row[0] == contig]
        step = slots if kind < 3 else 1
        for i in range(0, len(some), step):
            block = some[i : i + step]
            start, end, span = block[0][1], block[-1][2], block[0][2] - block[0][1]
            body = pack("IIIIIBBH", numbers[contig], start, end, span, span, kind, 0, len(block))
            for _, s, e, v in block:
                body += {1: pack("IIf", s, e, v), 2: pack("If", s, v), 3: pack("f", v)}[kind]
            largest = max(largest, len(body))
            body = zlib.compress(body) if zipped else body
            leaves.append((numbers[contig], start, end, place, len(body)))
            data += body
            place += len(body)
    return _with_index(pack, tree, data, leaves, children, largest if zipped else 0)


def _with_index(pack, tree: bytes, data: bytes, leaves, children: int, largest: int) -> bytes:
    """Leaves of `children` blocks, and nodes above until one is left; from the root down."""
    index_at = 64 + len(tree) + len(data)
    count = len(leaves)
    levels = [[leaves[i : i + children] for i in range(0, count, children)] or [[]]]
    while len(levels[0]) > 1:
        below = list(range(len(levels[0])))
        levels.insert(0, [below[i : i + children] for i in range(0, len(below), children)])
    sizes = [24] * (len(levels) - 1) + [32]
    starts: list[list[int]] = []
    at = index_at + 48
    for level, size in zip(levels, sizes, strict=True):
        starts.append([])
        for node in level:
            starts[-1].append(at)
            at += 4 + size * len(node)
    nodes = b""
    for depth, level in enumerate(levels):
        last = depth == len(levels) - 1
        for node in level:
            nodes += pack("BBH", last, 0, len(node))
            for item in node:
                if last:
                    number, start, end, place, size = item
                    nodes += pack("IIIIQQ", number, start, number, end, place, size)
                else:
                    nodes += pack("IIIIQ", 0, 0, 9, 9, starts[depth + 1][item])
    head = pack("IIQIIIIQII", 0x2468ACE0, children, count, 0, 0, 9, 9, index_at, 7, 0)
    header = pack(
        "IHHQQQHHQQIQ", 0x888FFC26, 4, 0, 64, 64 + len(tree), index_at, 0, 0, 0, 0, largest, 0
    )
    return header + tree + data + head + nodes


def _read(path: Path, lengths: dict[str, int] = LENGTHS) -> list[Row]:
    return [
        (part.contig, s, e, v)
        for part in read_track_file(path, lengths)
        for s, e, v in zip(
            part.starts.tolist(), part.ends.tolist(), part.values.tolist(), strict=True
        )
    ]


@settings(max_examples=60)
@given(
    st.integers(0, 99),
    st.sampled_from("<>"),
    st.sampled_from([1, 2, 3]),
    st.booleans(),
    st.integers(2, 9),
)
def test_every_kind_of_block_order_and_depth(tmp_path_factory, seed, order, kind, zipped, children):
    rows = _rows(seed, None if kind == 1 else 1 + seed % 10)
    path = tmp_path_factory.mktemp("bw") / "x.bw"
    path.write_bytes(_bigwig(rows, order=order, kind=kind, zipped=zipped, children=children))
    check_track_file(path)
    assert _read(path) == rows


def test_what_pybigwig_writes(tmp_path):
    library = pytest.importorskip("pyBigWig", reason="the extra bigwig is not installed")
    draw, path = np.random.default_rng(1), tmp_path / "x.bw"
    file = library.open(str(path), "w")
    file.addHeader([("a", 400_000), ("c", 90_000)])
    starts = np.arange(0, 390_000, 13)
    values = draw.normal(size=len(starts))
    file.addEntries(["a"] * len(starts), starts.tolist(), (starts + 9).tolist(), values.tolist())
    file.addEntries("c", 5, values=values[:5000].tolist(), span=3, step=4)
    file.addEntries("c", starts[3000:6000].tolist(), values=values[:3000].tolist(), span=2)
    file.close()
    file = library.open(str(path))
    oracle = [(c, *row) for c in ("a", "c") for row in file.intervals(c)]
    assert _read(path, {"a": 400_000, "c": 90_000}) == oracle
    assert len(oracle) == 38_000


def test_values_that_are_not_finite_are_unknown(tmp_path):
    rows = [("a", 0, 5, 1.0), ("a", 5, 9, float("nan")), ("a", 9, 12, float("inf"))]
    path = tmp_path / "x.bw"
    path.write_bytes(_bigwig(rows))
    assert _read(path) == rows[:1]


@pytest.mark.parametrize(
    ("lengths", "rows", "sentence"),
    [
        ({"a": 1000, "z": 5}, _rows(0)[:9], r"has no contig 'z' \(it has 'a', 'b', 'c'\)"),
        ({"a": 999}, [], r"x\.bw: 'a' has 999 bases there, but 1000 in the genome"),
        ({"a": 1000}, [], r"x\.bw gives no base a value"),
        ({"a": 1000}, [("a", 5, 9, 1.0), ("a", 8, 12, 2.0)], r"two rows give a value to 'a' at 8"),
        (
            {"a": 1000},
            [("a", 990, 1001, 1.0)],
            r"x\.bw is a damaged .* outside 'a', which has 1000",
        ),
        (
            {"a": 1000},
            [("a", 9, 9, 1.0)],
            r"x\.bw is a damaged bigWig file \(it has values outside",
        ),
    ],
)
def test_bigwigs_that_do_not_fit(tmp_path, lengths, rows, sentence):
    fasta, path = tmp_path / "a.fa", tmp_path / "x.bw"
    fasta.write_text("".join(f">{name}\n{'ACGT' * (n // 4)}\n" for name, n in LENGTHS.items()))
    path.write_bytes(_bigwig(rows, lengths))
    with pytest.raises(UserError, match=sentence):
        write_store(tmp_path / "genome.zarr", [fasta], tracks={"x": path})
    assert not (tmp_path / "genome.zarr").exists()


def test_a_damaged_beginning_is_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "x.bw"
    path.write_bytes(_bigwig(_rows(0))[:70])
    with pytest.raises(UserError, match=r"x\.bw is a damaged bigWig file \(it ends before"):
        write_store(tmp_path / "genome.zarr", [tmp_path / "a.fa"], tracks={"x": path})


def test_every_cut_is_refused(tmp_path):
    whole, path = _bigwig(_rows(0), slots=20), tmp_path / "x.bw"
    for size in range(4, len(whole), 3):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"x\.bw is a damaged bigWig file"):
            _read(path)


@settings(max_examples=300)
@given(st.integers(4, 10_000), st.integers(0, 255), st.booleans(), st.booleans())
def test_a_wrong_byte_is_refused_or_changes_nothing(tmp_path_factory, place, value, zipped, twice):
    """Values within zipped blocks have a checksum; the index's bounds are not needed."""
    rows = _rows(0)
    content = bytearray(_bigwig(rows, zipped=zipped))
    content[place % (len(content) - 4) + 4] = value
    if twice:
        content[place * 7 % (len(content) - 4) + 4] = value
    path = tmp_path_factory.mktemp("bw") / "x.bw"
    path.write_bytes(content)
    try:
        found = _read(path)
    except UserError as error:
        assert "x.bw" in str(error)
        return
    assert found == rows if zipped else {row[0] for row in found} <= set(LENGTHS)
