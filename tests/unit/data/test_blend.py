"""Corpora in chosen shares: exact counts, each in its own order, stages, any position at once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_hyena.config import load_config
from megatron_hyena.data.blend import CYCLE, BlendedStream, cycle_counts, tempered
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.errors import UserError
from pretrain.data import open_data


@pytest.fixture(scope="module")
def folders(shards_of, random_contigs):
    lower = [contig.lower() for contig in random_contigs(700, 90)]
    return [
        shards_of(random_contigs(400, 60, 9)),
        shards_of(lower),
        shards_of(random_contigs(30, letters=b"N" + b"RYSW")),
    ]


def _blend(folders, shares, begins=(0,), seed=3) -> BlendedStream:
    streams = [WindowStream(folder, 20, seed=i) for i, folder in enumerate(folders)]
    return BlendedStream(streams, shares, begins, seed)


def test_each_cycle_has_exact_shares_and_each_corpus_its_own_order(folders):
    blend = _blend(folders, [[0.7, 0.2, 0.1]])
    assert blend.counts.sum() == CYCLE
    assert np.abs(blend.counts / CYCLE - [0.7, 0.2, 0.1]).max() < 1 / CYCLE
    numbers, index = blend.places(np.arange(3 * CYCLE))
    for cycle in range(3):
        part = numbers[cycle * CYCLE : (cycle + 1) * CYCLE]
        assert np.bincount(part).tolist() == blend.counts[0].tolist()
    for number in range(3):
        own = index[numbers == number]
        assert own.tolist() == list(range(len(own)))  # nothing left out, nothing twice
    halves = np.abs(np.bincount(numbers[: CYCLE // 2]) / (CYCLE // 2) - [0.7, 0.2, 0.1])
    assert halves.max() < 0.05


def test_windows_are_those_of_the_streams(folders):
    blend = _blend(folders, [[1, 1, 2]])
    drawn = np.random.default_rng(0).integers(0, 3 * CYCLE, 200)
    numbers, index = blend.places(drawn)
    together = blend.windows(drawn.tolist())
    for row, (number, at) in enumerate(zip(numbers.tolist(), index.tolist(), strict=True)):
        expected = blend.streams[number].window(at)
        assert together.row(row).bases.tobytes() == expected.bases.tobytes()
        assert blend.window(int(drawn[row])).bases.tobytes() == expected.bases.tobytes()
    assert len(set(numbers.tolist())) == 3


def test_stages_change_the_shares_and_go_on_in_each_corpus(folders):
    begins = [0, CYCLE + 100, 3 * CYCLE]
    blend = _blend(folders, [[1, 0, 1], [0, 1, 0], [0.25, 0.5, 0.25]], begins)
    numbers, index = blend.places(np.arange(5 * CYCLE))
    assert set(numbers[: begins[1]].tolist()) == {0, 2}
    assert set(numbers[begins[1] : begins[2]].tolist()) == {1}
    assert np.bincount(numbers[begins[2] : begins[2] + CYCLE]).tolist() == [1024, 2048, 1024]
    for number in range(3):
        own = index[numbers == number]
        assert own.tolist() == list(range(len(own)))


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
def test_counts_are_the_nearest_whole_numbers(shares):
    counts = cycle_counts(shares)
    assert counts.sum() == CYCLE
    assert np.abs(counts - np.array(shares) / sum(shares) * CYCLE).max() < 1


def test_temperature_flattens_the_shares():
    sizes = [1_000_000, 10_000, 100]
    assert tempered(sizes, 1.0).tolist() == pytest.approx(np.array(sizes) / sum(sizes))
    roots = np.sqrt(sizes)
    assert tempered(sizes, 2.0).tolist() == pytest.approx(roots / roots.sum())
    assert tempered(sizes, 1e9).tolist() == pytest.approx([1 / 3] * 3)


def _open(folders, *overrides: str):
    train = ",".join(map(str, folders))
    keys = [f"data.train={train}", "data.sequence_length=20", "train.global_batch_size=4"]
    return open_data(load_config(None, [*keys, *overrides])).train


def test_configuration_chooses_the_shares(folders):
    plain = _open(folders)
    assert isinstance(plain, WindowStream)
    blend = _open(folders, "data.weights=[3,1,0, 0,1,1]", "data.stages=[100]")
    assert isinstance(blend, BlendedStream)
    counted = Counter(blend.places(np.arange(400))[0].tolist())
    assert set(counted) == {0, 1}
    assert set(blend.places(np.arange(400, 800))[0].tolist()) == {1, 2}
    cold, warm = (_open(folders, f"data.temperature={t}") for t in (1.001, 5))
    assert isinstance(cold, BlendedStream)
    assert isinstance(warm, BlendedStream)
    assert cold.counts[0, 2] < warm.counts[0, 2] < CYCLE / 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.weights=[1,2]"], "has 2 numbers, but data.train names 3 corpora and .* 1 x 3"),
        (["data.weights=[1,2,3]", "data.stages=[5]"], "3 numbers, which are not 2 rows"),
        (["data.weights=[1,2,-3]"], "data.weights are 1 2 -3; give each corpus a number from 0"),
        (["data.weights=[0,0,0]"], "are 0 0 0"),
        (["data.weights=[1,1,0.0001]"], r"a share of 5e-05, below one window in 4096"),
        (["data.weights=[1,1,1]", "data.temperature=2"], "both choose shares; keep one"),
        (["data.weights=[1,1,1,1,1,1,1,1,1]", "data.stages=[9,5]"], "must be rising steps above 0"),
    ],
)
def test_contradictions_are_refused(folders, overrides, message):
    with pytest.raises(UserError, match=message):
        _open(folders, *overrides)


def test_passes_are_those_of_the_corpus_shown_most_often(folders):
    blend = _blend(folders, [[0.7, 0.2, 0.1], [0, 1, 0]], [0, 3000])
    numbers, _ = blend.places(np.arange(7000))
    for position in (0, 1, 500, 2999, 3000, 3001, 7000):
        shown = np.bincount(numbers[:position], minlength=3)
        sizes = [stream.windows_per_epoch for stream in blend.streams]
        assert blend.passes(position) == pytest.approx((shown / sizes).max())
