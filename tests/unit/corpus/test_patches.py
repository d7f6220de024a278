"""Where chunks open: rules, quantiles and counts against loops over every base."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_hyena.corpus import patches
from megatron_hyena.corpus.patches import LevelCount, levels, quantile_thresholds, scores
from megatron_hyena.errors import UserError


def _series(length: int, seed: int = 0) -> np.ndarray:
    """Numbers of both signs, some equal, some unknown."""
    draw = np.random.default_rng(seed)
    found = draw.normal(size=length).astype(np.float32)
    found[draw.random(length) < 0.2] = np.float32(0.25)
    found[draw.random(length) < 0.1] = np.nan
    return found


def _by_hand(series: np.ndarray, rule: str, thresholds: list[float]) -> list[int]:
    found = [len(thresholds)]
    for t in range(len(series) - 1):
        before = series[t - 1] if t else np.float32(math.nan)
        score = series[t] - before if rule == "monotonic" else series[t]
        found.append(sum(bool(score > np.float32(one)) for one in thresholds))
    return found


@pytest.mark.parametrize("rule", patches.RULES)
@pytest.mark.parametrize("length", [1, 2, 3, 200])
@pytest.mark.parametrize("thresholds", [[0.1], [-0.5, 0.25, 1.0]])
def test_levels_are_those_of_a_loop(rule, length, thresholds):
    series = _series(length)
    found = levels(scores(series, rule), thresholds)
    assert found.dtype == np.uint8
    assert found.tolist() == _by_hand(series, rule, thresholds)
    if length == 200:
        assert set(found.tolist()) == set(range(len(thresholds) + 1))


@pytest.mark.parametrize("rule", patches.RULES)
def test_what_opens_depends_on_earlier_numbers_alone(rule):
    series = _series(60)
    before = levels(scores(series, rule), [0.1])
    for t in range(60):
        for value in (-9.0, 9.0, math.nan):
            changed = series.copy()
            changed[t] = value
            after = levels(scores(changed, rule), [0.1])
            assert after[: t + 1].tolist() == before[: t + 1].tolist()
    with_high = series.copy()
    with_high[30] = 9.0
    assert levels(scores(with_high, rule), [0.1])[31] == 1


@pytest.mark.parametrize("pieces", [7, 1 << 22])
def test_thresholds_are_exact_order_statistics(monkeypatch, pieces):
    monkeypatch.setattr(patches, "_AT_ONCE", pieces)
    draw = np.random.default_rng(1)
    for scale in (1e-30, 1.0, 1e30):
        values = (scale * draw.normal(size=500)).astype(np.float32)
        values[::9] = np.nan
        known = np.sort(values[~np.isnan(values)])
        keep = [0.9, 0.5, 0.33, 0.1, 0.001]
        found = quantile_thresholds(values, keep)
        for part, threshold in zip(keep, found, strict=True):
            kept = max(1, round(part * len(known)))
            assert threshold == known[len(known) - kept - 1]
            assert (known > np.float32(threshold)).sum() == kept


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.5, 0.6, 0.7, 0.9, 0.99])
def test_of_equal_scores_all_or_none_lie_above(keep):
    """The number kept is the nearest of those that any threshold can keep."""
    for values in ([0, 1, 1, 1, 1, 1, 2, -3], [-1, -1, -1, 0, 0, 0, 0], list(range(20))):
        scored = np.array(values, dtype=np.float32)
        target = min(len(values) - 1, max(1, round(keep * len(values))))
        possible = {sum(one > limit for one in values) for limit in (-99, *values)}
        (threshold,) = quantile_thresholds(scored, [keep])
        found = int((scored > np.float32(threshold)).sum())
        assert abs(found - target) == min(abs(one - target) for one in possible)


def test_too_few_numbers():
    for known in ([], [3.0]):
        values = np.array([math.nan, *known, math.nan], dtype=np.float32)
        words = f"{len(known)} of {len(values)} bases have a number"
        with pytest.raises(UserError, match=words):
            quantile_thresholds(values, [0.5])
    assert quantile_thresholds(np.array([1, 2], np.float32), [0.01]) == [1.0]


def test_counts_of_chunks_and_their_lengths():
    draw = np.random.default_rng(2)
    count, lengths, bases = LevelCount(), list[int](), 0
    for size in (1, 40, 300):
        opens = draw.random(size) < 0.2
        opens[0] = True
        count.add(opens)
        open_for = 0
        for here in opens.tolist():
            if here and open_for:
                lengths.append(open_for)
                open_for = 0
            open_for += 1
        lengths.append(open_for)
        bases += size
    assert (count.bases, count.chunks) == (bases, len(lengths))
    assert count.kept == len(lengths) / bases
    for q, found in count.length_quantiles().items():
        assert sum(one <= found for one in lengths) >= q * len(lengths)
        assert sum(one < found for one in lengths) < q * len(lengths)
