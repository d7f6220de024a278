"""Batches: the same windows for every layout, from any step, and a thread that ends."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena.data.alphabet import EOD, MASK, PAD
from megatron_hyena.data.batch import Batch, make_batch
from megatron_hyena.data.loader import BatchIterator, evaluation_batches, micro_batches
from megatron_hyena.data.stream import Window
from megatron_hyena.data.windows import WindowStream, sequential_windows
from megatron_hyena.errors import UserError


@pytest.fixture(scope="module")
def stream(chlamydia_shards) -> WindowStream:
    return WindowStream(chlamydia_shards / "valid", 512, seed=11, augment_reverse_complement=True)


def _rows(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.input_ids for batch in batches])


def test_targets_are_the_inputs_moved_and_unknowns_weigh_nothing():
    window = np.array([65, 67, ord("N"), ord("n"), PAD, EOD, MASK, 103, 82], dtype=np.uint8)
    batch = make_batch([window, window[::-1]])
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    assert batch.input_ids[0].tolist() == window[:-1].tolist()
    assert batch.targets[0].tolist() == window[1:].tolist()
    assert batch.weights.dtype == torch.float32
    assert batch.weights[0].tolist() == [1, 0, 0, 0, 0, 0, 1, 1]
    assert batch.weights[1].tolist() == [1, 0, 0, 0, 0, 0, 1, 1]
    moved = batch.to("cpu")
    assert torch.equal(moved.targets, batch.targets)


@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (12, 1), (2, 2), (1, 4), (3, 4), (4, 3)])
def test_ranks_together_see_the_same_rows(stream, micro, ranks):
    for step in (0, 7, 30):
        whole = _rows(micro_batches(stream, step, 12, 12, 0, 1))
        shares = [micro_batches(stream, step, 12, micro, rank, ranks) for rank in range(ranks)]
        assert all(batch.input_ids.shape == (micro, 512) for share in shares for batch in share)
        assert torch.equal(torch.cat([_rows(share) for share in shares]), whole)


def test_steps_go_over_epochs_without_losing_a_window(stream):
    n = stream.windows_per_epoch
    rows = torch.cat([_rows(micro_batches(stream, s, 4, 2, 0, 1)) for s in range(n)])
    assert len(rows) == 4 * n
    for epoch in range(4):
        ours = {tuple(row.tolist()) for row in rows[epoch * n : (epoch + 1) * n]}
        direct = {tuple(stream.window(epoch * n + i).bases[:-1].tolist()) for i in range(n)}
        assert ours == direct
        assert len(ours) == n


def test_global_batch_must_divide(stream):
    with pytest.raises(UserError, match=r"10 is not a multiple of .*micro_batch_size 2 x 3 data"):
        micro_batches(stream, 0, 10, 2, 0, 3)
    with pytest.raises(UserError, match="is not a multiple"):
        BatchIterator(stream, 0, global_batch_size=10, micro_batch_size=4)


def test_more_than_the_data_holds(stream):
    with pytest.raises(UserError, match="fewer than one global batch of 1000"):
        BatchIterator(stream, 0, global_batch_size=1000, micro_batch_size=1)


def test_iterator_resumes_at_any_step(stream):
    sizes: dict[str, Any] = {"global_batch_size": 6, "micro_batch_size": 2}
    with BatchIterator(stream, 0, stop_step=40, **sizes) as batches:
        straight = {step: _rows(share) for step, share in batches}
    assert list(straight) == list(range(40))
    for start in (1, 17, 39):
        with BatchIterator(stream, start, **sizes) as batches:
            for step, share in islice(batches, 40 - start):
                assert torch.equal(_rows(share), straight[step])
                start += 1
    assert start == 40


def test_closing_ends_the_thread(stream):
    before = threading.active_count()
    batches = BatchIterator(stream, 0, global_batch_size=4, micro_batch_size=4)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    batches.close()
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(batches)


def test_an_error_in_the_thread_reaches_the_caller(stream, monkeypatch):
    def fail(positions: Sequence[int]) -> Window:
        if max(positions) >= 8:
            raise OSError("the disk is gone")
        return WindowStream.windows(stream, positions)

    monkeypatch.setattr(stream, "windows", fail)
    with BatchIterator(stream, 0, global_batch_size=4, micro_batch_size=4) as batches:
        assert [step for step, _ in islice(batches, 2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(batches)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_batches_cover_the_split_once_on_any_ranks(chlamydia_shards, ranks):
    windows = sequential_windows(chlamydia_shards / "test", 2048, 1024)
    shares = [list(evaluation_batches(windows, 4, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert all(batch.input_ids.shape == (4, 2048) for share in shares for batch in share)
    total = sum(float(batch.weights.sum()) for share in shares for batch in share)
    assert total == windows.scored_bases == 52_125
    rows = [row for share in shares for batch in share for row in batch.input_ids]
    assert sum(bool((row != PAD).any()) for row in rows) == len(windows)
