"""The order of training and the windows of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SPLITS, SplitRule
from megatron_hyena.data.alphabet import PAD, reverse_complement
from megatron_hyena.data.order import NearbyOrder, Permutation
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.stream import Cuts
from megatron_hyena.data.windows import WindowStream, sequential_windows
from megatron_hyena.errors import UserError
from tests.oracles.window_order import (
    ORDER,
    PHASE,
    STRAND,
    content,
    key,
    permutation,
    stretches,
    word,
)

COMPLEMENTED = bytes.maketrans(b"ACGT", b"TGCA")


def _shards(folder: Path, *lengths: int, piece: int = 50) -> tuple[Path, list[bytes]]:
    """Shards of random contigs of these lengths, all train, and the contigs' bases."""
    draw = np.random.default_rng(7)
    contigs = [draw.choice(np.frombuffer(b"ACGT", np.uint8), n).tobytes() for n in lengths]
    fasta = folder / "a.fa"
    fasta.write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(contigs)))
    store = write_store(folder / "genome.zarr", [fasta])
    settings = ShardSettings(SplitRule(0, 0), piece_length=piece, shard_size=120)
    write_shards(store, folder / "shards", settings)
    return folder / "shards" / "train", contigs


def _shown(contigs: list[bytes], length: int, seed: int, epoch: int, turn: bool) -> list[bytes]:
    """The windows of an epoch in order, cut by hand."""
    places = [
        (number, *place)
        for number, contig in enumerate(contigs)
        for place in stretches(len(contig), length, word(key(seed, epoch, PHASE), number))
    ]
    windows = []
    for chosen in permutation(len(places), key(seed, epoch, ORDER)):
        number, begin, end = places[chosen]
        text = contigs[number]
        if turn and word(key(seed, epoch, STRAND), chosen) >= 1 << 63:
            text, begin, end = (
                text[::-1].translate(COMPLEMENTED),
                len(text) - end,
                len(text) - begin,
            )
        windows.append(bytes(content(text, begin, end, length, PAD)))
    return windows


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("lengths", [(205, 20, 21, 95, 1), (405, 39, 60), (700,), (20,)])
def test_windows_are_those_cut_by_hand(tmp_path, lengths, turn):
    folder, contigs = _shards(tmp_path, *lengths)
    stream = WindowStream(folder, 20, seed=3, augment_reverse_complement=turn)
    n = stream.windows_per_epoch
    for epoch in range(6):
        expected = _shown(contigs, 20, 3, epoch, turn)
        assert [stream.window(epoch * n + i).bases.tobytes() for i in range(n)] == expected
    together = stream.windows(range(3 * n))
    assert together.types.shape == together.bases.shape
    for i in range(3 * n):
        assert together.row(i).bases.tobytes() == stream.window(i).bases.tobytes()


def _starts(contig: bytes, stream: WindowStream, epoch: int) -> list[int]:
    n = stream.windows_per_epoch
    texts = (stream.window(epoch * n + i).bases.tobytes().rstrip(b"\1") for i in range(n))
    return sorted(contig.index(text) for text in texts)


@pytest.mark.parametrize("length", [7, 20, 64, 1000])
def test_an_epoch_shows_every_byte_once_at_a_phase_of_its_own(tmp_path, length):
    folder, contigs = _shards(tmp_path, 400, 33, 5, 1)
    stream = WindowStream(folder, length, seed=3, augment_reverse_complement=False)
    n = stream.windows_per_epoch
    edges = set()
    for epoch in range(40):
        inputs = [stream.window(epoch * n + i).bases[:-1] for i in range(n)]
        shown = b"".join(row[row != PAD].tobytes() for row in inputs)
        assert sorted(shown) == sorted(b"".join(contigs))
        full = next(row.tobytes() for row in inputs if row[-1] != PAD) if length < 400 else b""
        edges.add(contigs[0].find(full) % length)
    assert len(edges) >= min(length // 2, 15) or length == 1000


def test_long_stretches_have_half_a_window_of_phases(tmp_path):
    for total in (320, 321, 330, 331, 339, 340):
        cuts = Cuts.of(np.array([total]), 20)
        assert cuts.choices[0] >= 10
        assert cuts.total * 20 - total < 30
    assert Cuts.of(np.array([319]), 20).total == 16


@given(
    lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    length=st.integers(1, 40),
    unit=st.sampled_from([1, 2, 4]),
    drawn=st.integers(0, 2**64 - 1),
)
def test_cuts_are_those_of_brute_force(lengths, length, unit, drawn):
    length *= unit
    totals = np.array(lengths) * unit
    cuts = Cuts.of(totals, length, unit)
    expected = [stretches(total, length, drawn, unit) for total in totals.tolist()]
    assert cuts.counts.tolist() == [len(one) for one in expected]
    windows = np.arange(cuts.total)
    where = cuts.stretch_of(windows)
    begins = cuts.begins(windows, where, np.full(len(where), drawn, dtype=np.uint64))
    assert [max(0, begin) for begin in begins.tolist()] == [b for one in expected for b, _ in one]
    assert all(begin < end for one in expected for begin, end in one)


@pytest.mark.parametrize("size", [1, 2, 3, 100, 4096, 4097, 10_007])
def test_permutations_are_those_of_the_oracle_and_whole(size):
    found = Permutation(size, key(3, size))(np.arange(size))
    assert found.tolist() == permutation(size, key(3, size))
    assert sorted(found.tolist()) == list(range(size))


def test_places_of_a_large_permutation_are_drawn_alone_and_spread():
    size, index = 10**12 + 39, np.arange(20_000) * 49_999_999
    mixed = Permutation(size, key(1))
    images = mixed(index)
    assert mixed(index[7:8]) == images[7]
    assert len(set(images.tolist())) == len(index)
    counts = np.histogram(images, bins=50, range=(0, size))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 100  # chi square, 49 degrees of freedom
    other = Permutation(size, key(2))(index)
    assert abs(np.corrcoef(images, other)[0, 1]) < 0.05
    assert abs(np.corrcoef(images, index)[0, 1]) < 0.05


def test_order_is_a_pure_function_of_seed_epoch_and_position(tmp_path):
    folder, _ = _shards(tmp_path, 900)
    first, second, other = (
        WindowStream(folder, 20, seed=s, augment_reverse_complement=True) for s in (5, 5, 6)
    )
    positions = np.random.default_rng(0).permutation(4 * first.windows_per_epoch)
    straight = [first.window(p).bases.tobytes() for p in range(len(positions))]
    assert [second.window(int(p)).bases.tobytes() for p in positions] == [
        straight[p] for p in positions
    ]
    assert [other.window(p).bases.tobytes() for p in range(len(positions))] != straight
    with pytest.raises(ValueError, match="position"):
        first.window(-1)


def test_known_order_of_one_seed(tmp_path):
    """Pins the draws: a change of these numbers breaks the resuming of older runs."""
    folder, (contig,) = _shards(tmp_path, 205)
    stream = WindowStream(folder, 20, seed=1, augment_reverse_complement=True)
    found = []
    for position in range(14):
        text = stream.window(position).bases.tobytes().rstrip(b"\1")
        turned = text[::-1].translate(COMPLEMENTED)
        found.append(contig.index(text) if text in contig else -contig.index(turned))
    assert found == [
        109,
        -189,
        49,
        129,
        -8,
        -88,
        0,
        69,
        29,
        -168,
        149,
        85,
        25,
        -4,
    ]  # starts, negative on the other strand


def test_reverse_complement_is_a_fair_coin_on_the_same_inputs(tmp_path):
    folder, _ = _shards(tmp_path, 900)
    plain = WindowStream(folder, 20, seed=5)
    both = WindowStream(folder, 20, seed=5, augment_reverse_complement=True)
    turned = 0
    n = 20 * plain.windows_per_epoch
    for position in range(n):
        window, shown = plain.window(position).bases[:-1], both.window(position).bases[:-1]
        if not np.array_equal(window, shown):
            known = window != PAD
            assert np.array_equal(reverse_complement(window[known]), shown[known])
            turned += 1
    assert abs(turned / n - 0.5) < 0.06


def test_splits_share_no_window(chlamydia_shards, chlamydia_store):
    """Every window of a split lies in that split's positions, which gaps part from the others."""
    genome = chlamydia_store.read("CHLTCG", 0, 1_042_519).tobytes()
    covered: dict[str, tuple[int, int]] = {}
    for split in SPLITS:
        stream = WindowStream(chlamydia_shards / split, 2048, seed=2)
        starts = [start for epoch in range(3) for start in _starts(genome, stream, epoch)]
        covered[split] = (min(starts), max(starts) + 2049)
    assert covered["train"][0] >= 0
    assert covered["train"][1] + 4096 <= covered["valid"][0] + 2048
    assert covered["valid"][1] + 4096 <= covered["test"][0] + 2048


def test_a_global_batch_beyond_the_epoch_is_refused(tmp_path):
    folder, _ = _shards(tmp_path, 205)
    stream = WindowStream(folder, 20, seed=0)
    stream.check_global_batch(11)
    with pytest.raises(UserError, match="holds 11 sequences of 20 bases, fewer than one global"):
        stream.check_global_batch(12)


@pytest.mark.parametrize("length", [1, 2, 20, 21, 22, 37, 38, 100])
@pytest.mark.parametrize("context", [1, 5, 19, 20])
def test_evaluation_scores_each_base_once_with_its_context(tmp_path, length, context):
    folder, contigs = _shards(tmp_path, length, 63)
    windows = sequential_windows(folder, 20, context)
    scores = [np.zeros(len(contig), dtype=int) for contig in contigs]
    contig, start = 0 if length > 1 else 1, 0
    for number in range(len(windows)):
        bases, weights = windows[number]
        assert (bases.dtype, weights.dtype) == (np.uint8, np.float32)
        assert (len(bases), len(weights)) == (21, 20)
        if start + 1 >= len(contigs[contig]) or scores[contig][-1]:
            contig, start = contig + 1, 0
        piece = contigs[contig][start : start + 21]
        assert bases[: len(piece)].tobytes() == piece
        assert (bases[len(piece) :] == PAD).all()
        for j in np.flatnonzero(weights):
            scores[contig][start + 1 + j] += 1
            assert j + 1 >= min(context, start + 1 + j)
        start += 21 - context
    assert [s.tolist() for s in scores] == [[0] + [1] * (len(c) - 1) for c in contigs]
    assert windows.scored_bases == length - 1 + 62
    assert len(list(windows)) == len(windows)


@pytest.mark.parametrize("context", [0, 21])
def test_impossible_context(tmp_path, context):
    folder, _ = _shards(tmp_path, 63)
    with pytest.raises(UserError, match=f"context is {context} bases; give 1 to 20"):
        sequential_windows(folder, 20, context)


@given(size=st.integers(1, 3000), among=st.integers(1, 400), drawn=st.integers(0, 2**64 - 1))
def test_nearby_orders_are_whole_and_need_few_stretches(size, among, drawn):
    order = NearbyOrder(size, drawn, among)
    images = order(np.arange(size))
    assert sorted(images.tolist()) == list(range(size))
    some = np.arange(0, size, 7)[::-1]
    assert order(some).tolist() == images[some].tolist()
    stretch = min(size, -(-among // 16))
    for first in range(0, size // stretch * stretch, 16 * stretch):
        seen = np.unique(images[first : first + 16 * stretch] // stretch)
        assert len(seen) <= 16 + (first + 16 * stretch > size // stretch * stretch)


@pytest.mark.parametrize("kind", [WindowStream, PackedStream])
def test_shuffling_among_few_shows_the_same_and_reads_few_pieces(tmp_path, kind):
    folder, _ = _shards(tmp_path, *[300] * 40, piece=300)
    whole, near = kind(folder, 20, 3), kind(folder, 20, 3, among=64)
    n = whole.windows_per_epoch
    assert near.windows_per_epoch == n

    def shown(stream, positions):
        rows = [stream.window(p).bases[:-1] for p in positions]
        return sorted(np.concatenate([row[row != PAD] for row in rows]).tolist())

    assert shown(near, range(n)) == shown(whole, range(n))
    reads = [_runs_read(stream, range(64)) for stream in (near, whole)]
    assert len(reads[0]) < 30 < len(reads[1])


def _runs_read(stream: WindowStream | PackedStream, positions: range) -> set[int]:
    if isinstance(stream, WindowStream):
        return set(stream._places(np.array(positions))[:, 0].tolist())
    documents = [stream.window(position).documents for position in positions]
    return {int(number) for one in documents if one is not None for number in one}
