"""Metrics against their definitions, counted pair by pair."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest

from megatron_hyena.finetune.metrics import better, class_metrics, number_metrics


def by_pairs(scores, positive) -> float:
    """AUROC: how often a positive outranks a negative; ties are a half."""
    won = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i, j in product(np.flatnonzero(positive), np.flatnonzero(~positive))
    ]
    return sum(won) / len(won)


def drawn(classes: int, count: int = 60):
    generator = np.random.default_rng(classes)
    shares = generator.dirichlet(np.ones(classes), count).round(2)
    labels = generator.integers(0, classes, count)
    return shares, labels


def test_two_classes():
    shares, labels = drawn(2)
    told = shares.argmax(1)
    tp, tn = (((told == c) & (labels == c)).sum() for c in (1, 0))
    fp, fn = ((told == 1) & (labels == 0)).sum(), ((told == 0) & (labels == 1)).sum()
    found = class_metrics(shares, labels)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["mcc"] == pytest.approx((tp * tn - fp * fn) / root)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found["accuracy"] == pytest.approx((tp + tn) / len(labels))
    assert found["auroc"] == pytest.approx(by_pairs(shares[:, 1], labels == 1))


def test_three_classes_are_means_over_them():
    shares, labels = drawn(3)
    told = shares.argmax(1)
    found = class_metrics(shares, labels)
    areas = [by_pairs(shares[:, c], labels == c) for c in range(3)]
    scores = []
    for c in range(3):
        hit = ((told == c) & (labels == c)).sum()
        scores.append(2 * hit / ((told == c).sum() + (labels == c).sum()))
    assert found["auroc"] == pytest.approx(np.mean(areas))
    assert found["f1"] == pytest.approx(np.mean(scores))


def test_missing_labels_and_classes():
    shares, labels = drawn(2)
    half = np.where(np.arange(len(labels)) % 2, labels, -100)
    assert class_metrics(shares, half) == class_metrics(shares[1::2], labels[1::2])
    alone = class_metrics(shares, np.zeros(len(labels), dtype=int))
    assert math.isnan(alone["auroc"]) and alone["mcc"] == 0
    assert all(map(math.isnan, class_metrics(shares, np.full(len(labels), -100)).values()))


def ranks(values):
    """Mean rank of each value among all."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def correlation(x, y) -> float:
    pairs = [(x[i] - x[j], y[i] - y[j]) for i, j in combinations(range(len(x)), 2)]
    product_, xx, yy = (sum(f(a, b) for a, b in pairs) for f in
                        (lambda a, b: a * b, lambda a, b: a * a, lambda a, b: b * b))  # fmt: skip
    return product_ / math.sqrt(xx * yy)


def test_numbers():
    generator = np.random.default_rng(2)
    wanted = generator.normal(size=(30, 2)).round(1)
    told = wanted * [1, -2] + generator.normal(size=(30, 2))
    wanted[::7, 0] = np.nan
    found = number_metrics(told, wanted)
    known = ~np.isnan(wanted[:, 0])
    columns = [(told[known, 0], wanted[known, 0]), (told[:, 1], wanted[:, 1])]
    assert found["pearson"] == pytest.approx(np.mean([correlation(a, b) for a, b in columns]))
    assert found["spearman"] == pytest.approx(
        np.mean([correlation(ranks(a), ranks(b)) for a, b in columns])
    )
    r2 = [1 - ((a - b) ** 2).sum() / ((b - b.mean()) ** 2).sum() for a, b in columns]
    assert found["r2"] == pytest.approx(np.mean(r2))
    assert math.isnan(number_metrics(np.ones((3, 1)), np.arange(3.0)[:, None])["spearman"])


@pytest.mark.parametrize(
    ("value", "best", "metric", "wanted"),
    [
        (0.5, 0.4, "", True),
        (0.5, 0.5, "mcc", False),
        (0.5, 0.4, "loss", False),
        (0.3, 0.4, "loss", True),
        (math.nan, None, "", False),
        (0.0, math.nan, "", True),
        (0.0, None, "", True),
    ],
)
def test_what_is_better(value, best, metric, wanted):
    assert better(value, best, metric) is wanted
