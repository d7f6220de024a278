"""Track files into the store: against an array filled row by row, and every file to refuse."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.data import store as store_module
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError
from tools import prepare_genome

LENGTHS = {"a": 1000, "b": 40, "c": 700}

Row = tuple[str, int, int, float]


@pytest.fixture(params=[1 << 22, 256], ids=["one chunk", "many chunks"])
def fasta(tmp_path, monkeypatch, request) -> Path:
    """Three contigs; in the second case a chunk of a float track holds 64 bases."""
    monkeypatch.setattr(store_module, "CHUNK", request.param)
    path = tmp_path / "a.fa"
    path.write_text("".join(f">{name}\n{'ACGT' * (n // 4)}\n" for name, n in LENGTHS.items()))
    return path


def _rows(seed: int = 0) -> list[Row]:
    """Disjoint rows over `a` and `c` with holes between them; none of `b`."""
    draw = np.random.default_rng(seed)
    rows: list[Row] = []
    for contig in ("a", "c"):
        cuts = np.sort(draw.choice(LENGTHS[contig] + 1, 60, replace=False))
        pairs = zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
        rows += [(contig, s, e, float(draw.normal())) for s, e in pairs if draw.random() < 0.7]
    return rows


def _by_hand(rows: list[Row]) -> dict[str, np.ndarray]:
    tracks = {name: np.full(n, np.nan, dtype=np.float32) for name, n in LENGTHS.items()}
    for contig, start, end, value in rows:
        for position in range(start, end):
            tracks[contig][position] = np.float32(value)
    return tracks


def _text(rows: list[Row]) -> str:
    return "".join(f"{c}\t{s}\t{e}\t{v!r}\n" for c, s, e, v in rows)


def _check(store: GenomeStore, rows: list[Row]) -> None:
    track, expected = store.track("conservation"), _by_hand(rows)
    assert track.array.chunks == (store_module.CHUNK // 4,)
    for name, length in LENGTHS.items():
        found = track.read(name, 0, length)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[name])
        np.testing.assert_array_equal(track.read(name, 7, 31), expected[name][7:31])
    told = np.concatenate(list(expected.values()))
    told = told[~np.isnan(told)]
    attributes = track.attributes
    assert attributes["known"] == len(told)
    assert (attributes["least"], attributes["greatest"]) == (told.min(), told.max())


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_bedgraph_gives_each_base_its_rows_value(tmp_path, fasta, order):
    rows = _rows()
    written = list(rows)
    if order == "shuffled":
        written = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    head = 'browser position a:1-10\ntrack type=bedGraph name="x"\n# a comment\n\n'
    path = tmp_path / "x.bedgraph.gz"
    path.write_bytes(gzip.compress((head + _text(written)).encode()))
    store = write_store(tmp_path / "genome.zarr", [fasta], tracks={"conservation": path})
    assert store.tracks == ["conservation"]
    _check(store, rows)
    (source,) = [s for s in store.attributes["sources"] if s["role"] == "track conservation"]
    assert source["file"] == path.name


def test_rows_beyond_one_batch_and_unknown_ones(tmp_path, fasta, monkeypatch):
    monkeypatch.setattr("megatron_hyena.formats.track_files._ROWS_AT_ONCE", 7)
    rows = _rows()
    path = tmp_path / "x.bg"
    path.write_text(_text(rows) + "b\t3\t9\tnan\n")
    store = write_store(tmp_path / "genome.zarr", [fasta], tracks={"conservation": path})
    _check(store, rows)


def test_the_same_files_give_the_same_bytes(tmp_path, fasta):
    path = tmp_path / "x.bg"
    path.write_text(_text(_rows()))
    folders = [tmp_path / "one.zarr", tmp_path / "two.zarr"]
    for folder in folders:
        write_store(folder, [fasta], tracks={"conservation": path})
    contents = [
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders
    ]
    assert contents[0] == contents[1]


def test_bigwig_through_the_library_itself(tmp_path, fasta):
    library = pytest.importorskip("pyBigWig", reason="the extra bigwig is not installed")
    rows, path = sorted(_rows(3)), tmp_path / "x.bw"
    file = library.open(str(path), "w")
    file.addHeader([("a", 1000), ("c", 700)])
    file.addEntries(
        [r[0] for r in rows],
        [r[1] for r in rows],
        ends=[r[2] for r in rows],
        values=[r[3] for r in rows],
    )
    file.close()
    store = write_store(tmp_path / "genome.zarr", [fasta], tracks={"conservation": path})
    _check(store, rows)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a\t0\t10\t1\nz\t0\t10\t1\n", r"the genome has no contig 'z'"),
        ("a\t990\t1001\t1\n", r"row 1: 990\.\.1001 does not lie within 'a', which has 1000 bases"),
        ("a\t5\t5\t1\n", r"row 1: 5\.\.5 does not lie within 'a'"),
        ("a\t9\t5\t1\n", r"row 1: 9\.\.5 does not lie within 'a'"),
        ("# x\na\t0\t10\n", "row 2 is no bedGraph row"),
        ("a\t0\t10\t1\t+\n", "row 1 is no bedGraph row"),
        ("a\t-1\t10\t1\n", "row 1 is no bedGraph row"),
        ("a\t0\t10\thigh\n", "row 1 is no bedGraph row"),
        ("a\t0\t10\tinf\n", "row 1 is no bedGraph row"),
        ("a\t0\t10\t1e39\n", "row 1 is no bedGraph row"),
        ("fixedStep chrom=a start=1 step=1\n0.1\n", "row 1 is of a wiggle file"),
        ("a\t0\t10\t1\na\t9\t20\t2\n", r"two rows give a value to 'a' at 9 \(0-based\)"),
        ("a\t0\t10\t1\na\t3\t4\t1\n", r"two rows give a value to 'a' at 3 \(0-based\)"),
        ("a\t70\t75\t1\nb\t0\t1\t1\na\t60\t72\t2\n", r"two rows give a value to 'a' at 70"),
        ("c\t0\t9\t1\na\t0\t9\t1\nc\t8\t9\t1\n", r"two rows give a value to 'c' at 8"),
        ("# nothing\n", "gives no base a value"),
        ("a\t0\t10\tnan\n", "gives no base a value"),
        ("", "is empty"),
    ],
)
def test_bad_bedgraphs_are_refused_in_a_sentence(tmp_path, fasta, text, sentence):
    path = tmp_path / "bad.bg"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        write_store(tmp_path / "genome.zarr", [fasta], tracks={"x": path})
    assert "bad.bg" in str(caught.value)
    assert not (tmp_path / "genome.zarr").exists()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["conservation"], "--track conservation names no file; write NAME=FILE"),
        (["x=a.bg", "x=b.bg"], "--track gives x twice"),
        (["x=nowhere.bg"], "nowhere.bg does not exist"),
        (["Phylo P=a.bg"], "'Phylo P' is no name of a track"),
        (["features=a.bg"], "a track may not be named 'features'"),
        (["type=a.bg"], "a track may not be named 'type'"),
    ],
)
def test_bad_options(tmp_path, fasta, capsys, option, sentence):
    command = ["--fasta", str(fasta), "--output", str(tmp_path / "out"), "--track", *option]
    assert prepare_genome.main(command) == 2
    assert sentence in capsys.readouterr().err


def test_the_tool_says_what_a_track_holds(tmp_path, fasta, capsys):
    path = tmp_path / "x.bg"
    path.write_text("a\t0\t100\t0.25\nb\t0\t1\t-3\n")
    out = tmp_path / "out"
    command = ["--fasta", str(fasta), "--track", f"gc={path}", "--output", str(out)]
    assert prepare_genome.main(command) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "track: gc 101 (5.80%), -3 to 0.25" in lines
    assert "type dna" in lines


@pytest.mark.parametrize("kind", [np.bool_, np.uint8])
def test_a_track_is_added_to_a_store_that_exists(tmp_path, fasta, kind):
    store = write_store(tmp_path / "genome.zarr", [fasta])
    draw = np.random.default_rng(4)
    opens = {name: draw.integers(0, 3, n).astype(kind) for name, n in LENGTHS.items()}
    add_track(store, "boundaries", lambda contig: opens[contig.name], {"kind": "a chunk opens"})
    store = GenomeStore.open(store.path)
    track = store.track("boundaries")
    assert track.attributes == {"kind": "a chunk opens"}
    for name, length in LENGTHS.items():
        found = track.read(name, 0, length)
        assert found.dtype == kind
        assert np.array_equal(found, opens[name])
    with pytest.raises(UserError, match="has a track 'boundaries' already"):
        add_track(store, "boundaries", lambda contig: opens[contig.name], {})
    with pytest.raises(UserError, match="is no name of a track"):
        add_track(store, "../x", lambda contig: opens[contig.name], {})
    with pytest.raises(ValueError, match=r"float64 \(1000,\)"):
        add_track(store, "other", lambda contig: np.zeros(contig.length), {})
    assert store.tracks == ["boundaries"]
    assert not list(store.path.glob(".*"))
    add_track(store, "boundaries", lambda contig: opens[contig.name][::-1], {}, overwrite=True)
    again = GenomeStore.open(store.path).track("boundaries").read("c", 0, 700)
    assert np.array_equal(again, opens["c"][::-1])
