"""Pieces and single tar files: what is planned comes back from its line, N alone is left out."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.pieces import Piece, Portion, cut_pieces, fill_shards
from megatron_hyena.corpus.plan import _line, _lines, read_pieces_of
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shard_writer import Layers, write_shard
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError

GAPS_AND_LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(GAPS_AND_LENGTHS, max_size=4), st.integers(1, 12), st.integers(1, 50))
def test_lines_of_a_plan_give_the_pieces_back(tmp_path_factory, records, length, size):
    portions = []
    for number, stretches in enumerate(records):
        at = 0
        for gap, bases in stretches:
            start, at = at + gap, at + gap + bases
            portions.append(Portion("s", number, f"c{number}", start, at))
    pieces = list(cut_pieces("train", portions, length))
    shards = list(fill_shards(pieces, size))
    assert [piece for shard in shards for piece in shard] == pieces
    assert len({piece.key for piece in pieces}) == len(pieces)
    bases = [(p.contig, i) for p in pieces for i in range(p.start, p.end)]
    assert bases == [(p.contig, i) for p in portions for i in range(p.start, p.end)]
    sizes = [sum(piece.length for piece in shard) for shard in shards]
    assert all(
        len(shard) == 1 or filled <= size for shard, filled in zip(shards, sizes, strict=True)
    )
    assert all(
        filled + shard[0].length > size
        for filled, shard in zip(sizes[:-1], shards[1:], strict=True)
    )
    folder = tmp_path_factory.mktemp("plan")
    _lines(folder, "dna/train").write_bytes(b"".join(map(_line, shards)))
    for number, shard in enumerate(shards):
        assert read_pieces_of(folder, "dna/train", "train", number, length) == shard


def test_a_tar_file_of_nothing_but_n_is_empty_and_harmless(tmp_path):
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 5 + "N" * 20 + "GGGG" * 5 + "\n")
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "a.fa"])
    plan = ShardSettings(SplitRule(0, 0), piece_length=10, shard_size=20)
    index = write_shards(store, tmp_path / "shards", plan)["train"]
    assert [len(shard.samples) for shard in index.shards] == [2, 0, 2]
    with tarfile.open(tmp_path / "shards/train" / index.shards[1].file) as tar:
        assert tar.getnames() == []
    runs = open_runs(tmp_path / "shards/train")
    assert [(run.start, run.length) for run in runs] == [(0, 20), (40, 20)]
    assert ShardIndex.read(tmp_path / "shards/train").bases == 40


def test_a_failure_leaves_no_file(tmp_path):
    (tmp_path / "a.fa").write_text(">a\nACGTACGT\n")
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "a.fa"])
    pieces = [Piece("k0", "s", "a", 0, 4), Piece("k1", "s", "a", 4, 9)]
    with pytest.raises(UserError, match="is not inside the contig"):
        write_shard(tmp_path / "x.tar", "train", pieces, lambda _: store, Layers())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.fa", "genome.zarr"]


def test_tracks_of_the_wrong_kind_and_missing_marks_are_refused(tmp_path):
    (tmp_path / "a.fa").write_text(">a\nACGTACGT\n")
    made = write_store(tmp_path / "genome.zarr", [tmp_path / "a.fa"])
    add_track(made, "marks", lambda contig: np.zeros(contig.length, dtype=np.bool_), {})
    store = GenomeStore.open(made.path)
    pieces = [Piece("k0", "s", "a", 0, 8)]
    for tracks, message in (
        ({"marks": "float32"}, "'marks' holds bool, that of other samples float32"),
        ({"others": "bool"}, "has no track 'others', and marks are not unknown"),
    ):
        with pytest.raises(UserError, match=message):
            write_shard(tmp_path / "x.tar", "train", pieces, lambda _: store, Layers(tracks=tracks))
    numbers = Layers(tracks={"others": "float32"})
    write_shard(tmp_path / "x.tar", "train", pieces, lambda _: store, numbers)
    with tarfile.open(tmp_path / "x.tar") as tar:
        file = tar.extractfile("k0.others")
        assert file is not None
        assert np.isnan(np.frombuffer(file.read(), "<f4")).tolist() == [True] * 8
