"""The order of training and the windows of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SPLITS, SplitRule
from megatron_hyena.data.alphabet import PAD, reverse_complement
from megatron_hyena.data.windows import WindowStream, sequential_windows
from megatron_hyena.errors import UserError


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


def _spots(contigs: list[bytes], window: np.ndarray) -> list[tuple[int, int]]:
    """(contig, start) wherever the window stands."""
    text = window.tobytes()
    return [(i, contig.find(text)) for i, contig in enumerate(contigs) if text in contig]


def test_unshuffled_windows_tile_each_run(tmp_path):
    folder, contigs = _shards(tmp_path, 205, 20, 21, 95)
    stream = WindowStream(folder, 20, seed=3, shuffle=False)
    expected = [(0, 20 * i) for i in range(10)] + [(2, 0)] + [(3, 20 * i) for i in range(4)]
    assert stream.windows_per_epoch == len(expected)
    for epoch in range(2):
        for i, (contig, start) in enumerate(expected):
            window = stream.window(epoch * len(expected) + i).bases
            assert window.tobytes() == contigs[contig][start : start + 21]


def test_an_epoch_shows_disjoint_strides_each_once_and_epochs_differ(tmp_path):
    folder, contigs = _shards(tmp_path, 405, 39, 60, 20)
    stream = WindowStream(folder, 20, seed=3)
    n = stream.windows_per_epoch
    assert n == (405 // 20 - 1) + 1 + 2
    orders, phases = set(), set()
    for epoch in range(30):
        spots = []
        for i in range(n):
            (spot,) = _spots(contigs, stream.window(epoch * n + i).bases)
            spots.append(spot)
        for contig, count in ((0, 19), (1, 1), (2, 2)):
            starts = sorted(start for c, start in spots if c == contig)
            assert starts == [starts[0] + 20 * i for i in range(count)]
            assert starts[-1] + 21 <= len(contigs[contig])
            if contig == 0:
                phases.add(starts[0])
        orders.add(tuple(spots))
    assert len(orders) == 30
    assert len(phases) > 10


def test_every_base_is_reached_over_the_epochs(tmp_path):
    folder, contigs = _shards(tmp_path, 99, 33)
    stream = WindowStream(folder, 20, seed=0)
    seen = [np.zeros(len(contig), dtype=bool) for contig in contigs]
    for position in range(600 * stream.windows_per_epoch):
        ((contig, start),) = _spots(contigs, stream.window(position).bases)
        seen[contig][start : start + 21] = True
    assert all(contig.all() for contig in seen)


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


def test_known_order_of_one_seed(tmp_path):
    """Pins the draws: a change of these numbers breaks the resuming of older runs."""
    folder, contigs = _shards(tmp_path, 205)
    stream = WindowStream(folder, 20, seed=1, augment_reverse_complement=True)
    found = []
    for position in range(12):
        window = stream.window(position).bases
        forward = contigs[0].find(window.tobytes())
        backward = contigs[0].find(reverse_complement(window).tobytes())
        found.append(forward if forward >= 0 else -backward)
    assert found == [
        -58,
        -78,
        18,
        -158,
        -98,
        38,
        178,
        -118,
        -138,
        -8,
        -88,
        -108,
    ]  # starts, negative on the other strand


def test_reverse_complement_is_a_fair_coin_on_the_same_windows(tmp_path):
    folder, _ = _shards(tmp_path, 900)
    plain = WindowStream(folder, 20, seed=5)
    both = WindowStream(folder, 20, seed=5, augment_reverse_complement=True)
    turned = 0
    n = 20 * plain.windows_per_epoch
    for position in range(n):
        window, shown = plain.window(position).bases, both.window(position).bases
        if not np.array_equal(window, shown):
            assert np.array_equal(reverse_complement(window), shown)
            turned += 1
    assert abs(turned / n - 0.5) < 0.06


def test_splits_share_no_window(chlamydia_shards, chlamydia_store):
    """Every window of a split lies in that split's positions, which gaps part from the others."""
    genome = chlamydia_store.read("CHLTCG", 0, 1_042_519).tobytes()
    covered: dict[str, tuple[int, int]] = {}
    for split in SPLITS:
        stream = WindowStream(chlamydia_shards / split, 2048, seed=2)
        starts = [
            genome.find(stream.window(p).bases.tobytes())
            for p in range(3 * stream.windows_per_epoch)
        ]
        covered[split] = (min(starts), max(starts) + 2049)
    assert covered["train"][0] >= 0
    assert covered["train"][1] + 4096 <= covered["valid"][0]
    assert covered["valid"][1] + 4096 <= covered["test"][0]


def test_too_little_data(tmp_path):
    folder, _ = _shards(tmp_path, 205)
    with pytest.raises(UserError, match=r"no stretch of 301 bases \(the longest has 205\)"):
        WindowStream(folder, 300, seed=0)
    stream = WindowStream(folder, 20, seed=0)
    stream.check_global_batch(9)
    with pytest.raises(UserError, match="holds 9 sequences of 20 bases, fewer than one global"):
        stream.check_global_batch(10)


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
