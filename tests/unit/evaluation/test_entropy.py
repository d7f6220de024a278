"""Next-byte entropies along a sequence: a model asked for one prefix at a time, in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_hyena.evaluation.entropy import next_byte_entropy
from tests.oracles.drawing import small_config, small_model

MODEL = small_model(small_config("SLA"))
SEQUENCE = np.random.default_rng(0).choice(np.frombuffer(b"ACGTN", np.uint8), 61)


def _asked(sequence: np.ndarray) -> float:
    """H in nats after the whole of `sequence`, one byte's probability after the other."""
    with torch.no_grad():
        logits = MODEL(torch.from_numpy(sequence.astype(np.int64))[None]).logits[0, -1].numpy()
    weights = np.exp(logits - logits.max())
    return -sum(p * np.log(p) for p in weights / weights.sum())


def _entropies(sequence: np.ndarray, length: int, context: int, batch: int = 3) -> np.ndarray:
    return next_byte_entropy(
        lambda ids, tracks: MODEL(ids).logits,
        lambda start, end: sequence[start:end],
        len(sequence),
        length,
        context,
        batch_size=batch,
    )


@pytest.mark.parametrize(
    ("total", "length", "context"),
    [(61, 16, 8), (61, 16, 1), (61, 16, 16), (50, 61, 30), (1, 16, 8), (5, 16, 8), (24, 16, 8)],
)
def test_every_position_is_asked_once_with_its_context(total, length, context):
    sequence = SEQUENCE[:total]
    found = _entropies(sequence, length, context)
    assert found.dtype == np.float32
    stride = length + 1 - context
    for t in range(total):
        # The first window that holds t.
        begin = 0
        while t >= begin + length:
            begin += stride
        assert begin == 0 or t - begin + 1 >= context
        assert found[t] == pytest.approx(_asked(sequence[begin : t + 1]), rel=1e-5), t
    if total > 20:
        assert found.std() > 0.01


def test_tracks_come_with_their_bytes():
    """A model that reads its tracks: the entropy of a coin whose odds are the track's value."""
    odds = np.random.default_rng(1).uniform(-3, 3, 60).astype(np.float32)
    seen = []

    def logits(ids, tracks):
        seen.append(tracks)
        value = tracks["odds"].nan_to_num(7.0)
        return torch.stack([value, torch.zeros_like(value)], dim=-1)

    found = next_byte_entropy(
        logits,
        lambda start, end: SEQUENCE[start:end],
        60,
        16,
        8,
        tracks={
            "odds": lambda start, end: odds[start:end],
            "type": lambda start, end: np.full(end - start, 2),
        },
        batch_size=4,
    )
    p = 1 / (1 + np.exp(-odds.astype(np.float64)))
    np.testing.assert_allclose(found, -(p * np.log(p) + (1 - p) * np.log1p(-p)), rtol=1e-4)
    assert seen[0]["type"].dtype == torch.int64
    assert seen[0]["odds"].shape == seen[0]["type"].shape == (4, 16)
    assert seen[-1]["odds"][-1, -1].isnan()


def test_a_byte_changes_nothing_before_it():
    before = _entropies(SEQUENCE, 16, 8)
    for t in (0, 15, 16, 30, 60):
        changed = SEQUENCE.copy()
        changed[t] = ord("x")
        after = _entropies(changed, 16, 8)
        assert np.array_equal(after[:t], before[:t])
        assert after[t] != before[t]


def test_the_watch_counts_every_position_and_batches_change_nothing():
    counts: list[int] = []
    found = next_byte_entropy(
        lambda ids, tracks: MODEL(ids).logits,
        lambda start, end: SEQUENCE[start:end],
        61,
        16,
        8,
        batch_size=1,
        watch=counts.append,
    )
    assert sum(counts) == 61
    np.testing.assert_allclose(found, _entropies(SEQUENCE, 16, 8, batch=5), rtol=1e-6)
    with pytest.raises(ValueError, match="context"):
        _entropies(SEQUENCE, 16, 17)
