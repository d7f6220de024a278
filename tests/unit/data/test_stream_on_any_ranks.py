"""One stream whatever reads it: ranks, threads, and places to go on from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from megatron_hyena.data.alphabet import PAD
from megatron_hyena.data.batch import Case, make_batch
from megatron_hyena.data.blend import BlendedStream
from megatron_hyena.data.loader import BatchIterator
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.stream import TrainingStream
from megatron_hyena.data.windows import WindowStream

GLOBAL, LENGTH, STEPS = 24, 16, 12


@pytest.fixture(scope="module", params=["windows", "packed", "blend"])
def stream(request, shards_of, random_contigs) -> TrainingStream:
    many = shards_of(random_contigs(700, 3, 41, 90, 1, 16, letters=b"ACGTacgtN"))
    if request.param == "packed":
        return PackedStream(many, LENGTH, 4, augment_reverse_complement=True)
    plain = WindowStream(many, LENGTH, 4, augment_reverse_complement=True)
    if request.param == "windows":
        return plain
    other = WindowStream(shards_of(random_contigs(300)), LENGTH, 5)
    return BlendedStream([plain, other], [[2, 1], [1, 5]], [0, 5 * GLOBAL], 6)


def _step_digests(
    stream: TrainingStream, ranks: int, workers: int, start: int = 0
) -> Iterator[str]:
    """A hash of the global batch of each step, the ranks' shares put together."""
    shares = [
        BatchIterator(
            stream,
            start,
            global_batch_size=GLOBAL,
            micro_batch_size=GLOBAL // ranks // (3 if ranks < 8 else 1),
            data_rank=rank,
            data_size=ranks,
            stop_step=STEPS,
            workers=workers,
        )
        for rank in range(ranks)
    ]
    try:
        for parts in zip(*shares, strict=True):
            digest = hashlib.sha256()
            for field in ("input_ids", "targets", "weights"):
                rows = [getattr(batch, field) for _, batches in parts for batch in batches]
                digest.update(torch.cat(rows).numpy().tobytes())
            assert len({step for step, _ in parts}) == 1
            yield digest.hexdigest()
    finally:
        for share in shares:
            share.close()


def test_the_same_stream_on_any_ranks_and_threads(stream):
    expected = list(_step_digests(stream, 1, 0))
    assert len(set(expected)) == STEPS
    for ranks in (1, 2, 3, 8):
        for workers in (0, 1, 4) if ranks == 2 else (2,):
            assert list(_step_digests(stream, ranks, workers)) == expected


def test_going_on_anywhere_with_other_ranks_gives_what_remains(stream):
    expected = list(_step_digests(stream, 1, 1))
    draw = np.random.default_rng(1)
    for _ in range(20):
        start, ranks = int(draw.integers(0, STEPS)), int(draw.choice([1, 2, 3, 8]))
        workers = int(draw.integers(0, 5))
        remaining = list(islice(_step_digests(stream, ranks, workers, start), 3))
        assert remaining == expected[start : start + 3]


@pytest.mark.parametrize("length", [5, 16, 64])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_epoch_is_the_multiset_of_the_splits_bytes(shards_of, random_contigs, ranks, length):
    contigs = random_contigs(700, 3, 41, 90, 1, 16, letters=b"ACGTacgtN")
    folder = shards_of(contigs)
    for stream in (WindowStream(folder, length, 4), PackedStream(folder, length, 4)):
        n, shown = stream.windows_per_epoch, []
        per_rank = -(-n // ranks)
        for rank in range(ranks):
            for position in range(rank * per_rank, min(n, (rank + 1) * per_rank)):
                inputs = stream.window(position).bases[:-1]
                shown.append(inputs[inputs != PAD])
        held = np.concatenate([run.read(0, run.length) for run in stream.runs])
        assert np.array_equal(np.sort(np.concatenate(shown)), np.sort(held))
        assert len(held) >= sum(len(contig) for contig in contigs) - 3  # pieces of N alone


def test_a_place_far_off_is_as_cheap_as_the_first(stream, monkeypatch):
    """Nothing on the way to a place is drawn: the words drawn are as many anywhere."""
    from megatron_hyena.data import blend, order, packing, windows
    from megatron_hyena.data import stream as streams

    drawn: list[int] = []

    def counted(key, index):
        drawn.append(len(index))
        return plain(key, index)

    plain = order.words
    for module in (order, streams, windows, packing):
        monkeypatch.setattr(module, "words", counted)
    assert blend.Permutation.__module__ == order.__name__
    costs = []
    for position in (10**6, 10**9, 10**12):
        drawn.clear()
        stream.window(position)
        costs.append(sum(drawn))
    assert 0 < max(costs) < 3 * min(costs) + 20_000


def test_lower_case_weighs_less_and_may_be_folded():
    bases = np.frombuffer(b"ACgtNnaC", np.uint8)
    batch = make_batch([bases], case=Case(weight=0.25, fold=True))
    assert bytes(batch.input_ids[0].tolist()) == b"ACGTNNA"
    assert bytes(batch.targets[0].tolist()) == b"CGTNNAC"
    assert batch.weights[0].tolist() == [1, 0.25, 0.25, 0, 0, 0.25, 1]
    kept = make_batch([bases])
    assert bytes(kept.targets[0].tolist()) == b"CgtNnaC"
    assert kept.weights[0].tolist() == [1, 1, 1, 0, 0, 1, 1]


def test_each_rank_asks_ahead_for_its_own_windows(stream, monkeypatch):
    asked: list[list[int]] = []
    monkeypatch.setattr(stream, "prefetch", lambda positions: asked.append(list(positions)))
    with BatchIterator(
        stream,
        2,
        global_batch_size=GLOBAL,
        micro_batch_size=4,
        data_rank=1,
        data_size=2,
        workers=1,
    ) as batches:
        next(batches)
    assert asked[0] == list(range(4 * GLOBAL + 12, 5 * GLOBAL))
    assert asked == [[p + GLOBAL * i for p in asked[0]] for i in range(len(asked))]
