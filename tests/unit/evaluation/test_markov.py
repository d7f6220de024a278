"""Markov baselines against dictionary counting in pure Python and a source of known entropy."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest

from megatron_hyena.errors import UserError
from megatron_hyena.evaluation import contexts
from megatron_hyena.evaluation.markov import fit_markov, markov_table

TRAIN = ["ACGTTGCANNACGTagcattacgN", "ttgacgatRcagtcagtcaaacg", "", "G", "NN"]
VALID = ["acgattgcagNtcgatcaacgtacg", "TTACG"]
TEST = ["CAGNNacgttgRA", "gattaca", "A", "N"]
COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


def runs(texts):
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def reverse_complement(text):
    return "".join(COMPLEMENT.get(base, "N") for base in reversed(text.upper()))


def context_before(text, place, order):
    start = place
    while start > 0 and place - start < order and text[start - 1] in "ACGT":
        start -= 1
    return text[start:place]


class DictionaryMarkov:
    """The definition, with strings as contexts."""

    def __init__(self, train, order, both, smoothing, parameters):
        texts = [text.upper() for text in train]
        texts += [reverse_complement(text) for text in texts] if both else []
        self.order, self.smoothing, self.parameters = order, smoothing, parameters
        self.seen: Counter[tuple[str, str]] = Counter()
        for text in texts:
            for place, base in enumerate(text):
                if base in "ACGT":
                    longest = context_before(text, place, order)
                    for length in range(len(longest) + 1):
                        self.seen[longest[len(longest) - length :], base] += 1

    def probability(self, context, base):
        total = sum(self.seen[context, other] for other in "ACGT")
        if self.smoothing == "additive":
            return (self.seen[context, base] + self.parameters[0]) / (
                total + 4 * self.parameters[0]
            )
        strength = self.parameters[len(context)]
        prior = self.probability(context[1:], base) if context else 0.25
        return (self.seen[context, base] + strength * prior) / (total + strength)

    def log2_probabilities(self, text):
        text = text.upper()
        return [
            math.log2(self.probability(context_before(text, place, self.order), base))
            if place > 0 and base in "ACGT"
            else math.nan
            for place, base in enumerate(text)
        ]


VARIANTS = list(product([0, 1, 2, 3, 5], [False, True], ["additive", "interpolated"]))


@pytest.mark.parametrize("piece", [4, 1 << 22])
@pytest.mark.parametrize(("order", "both", "smoothing"), VARIANTS)
def test_equals_dictionary_counting(monkeypatch, order, both, smoothing, piece):
    monkeypatch.setattr(contexts, "PIECE", piece)  # contexts must reach across pieces
    model = fit_markov(runs(TRAIN), runs(VALID), order, both, smoothing)
    oracle = DictionaryMarkov(TRAIN, order, both, smoothing, model.parameters)
    scores = []
    for text, run in zip(TEST, runs(TEST), strict=True):
        expected = oracle.log2_probabilities(text)
        np.testing.assert_allclose(model.log2_probabilities(run), expected, rtol=1e-12)
        scores += [score for score in expected if not math.isnan(score)]
    assert len(scores) == 9 + 6
    assert model.bits_per_base(runs(TEST)) == pytest.approx(-np.mean(scores), rel=1e-12)


@pytest.mark.parametrize(("order", "both", "smoothing"), VARIANTS)
def test_every_context_has_probabilities_that_sum_to_one(order, both, smoothing):
    model = fit_markov(runs(TRAIN), runs(VALID), order, both, smoothing)
    assert model.log2_table.shape == (sum(4**m for m in range(order + 1)), 4)
    np.testing.assert_allclose(np.exp2(model.log2_table).sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("smoothing", ["additive", "interpolated"])
def test_parameters_are_the_best_on_validation(smoothing):
    """No parameter on a fine grid around the chosen one does better by more than rounding."""
    model = fit_markov(runs(TRAIN), runs(VALID), 2, True, smoothing)
    chosen = model.bits_per_base(runs(VALID))
    for place, factor in product(range(len(model.parameters)), np.geomspace(0.01, 100, 41)):
        parameters = list(model.parameters)
        parameters[place] = min(1e6, max(1e-3, parameters[place] * factor))
        other = DictionaryMarkov(TRAIN, 2, True, smoothing, parameters)
        scores = np.concatenate([other.log2_probabilities(text) for text in VALID])
        assert chosen <= -np.nanmean(scores) + 1e-4


def order_2_source(length, seed):
    """Bases of a random order-2 source as ASCII, and the source's [16, 4] probabilities."""
    probabilities = np.random.default_rng(7).dirichlet([0.7] * 4, size=16)
    bounds = probabilities.cumsum(axis=1)
    draws = np.random.default_rng(seed).random(length)
    state, codes = 0, []
    for draw in draws:
        code = min(int(np.searchsorted(bounds[state], draw)), 3)
        codes.append(code)
        state = (state * 4 + code) % 16
    return np.frombuffer(b"ACGT", dtype=np.uint8)[codes], probabilities


def entropy_rate(probabilities):
    transition = np.zeros((16, 16))
    for state, code in product(range(16), range(4)):
        transition[state, (state * 4 + code) % 16] = probabilities[state, code]
    stationary = np.linalg.matrix_power(transition, 200)[0]
    return -float(stationary @ (probabilities * np.log2(probabilities)).sum(axis=1))


def test_reaches_the_entropy_of_an_order_2_source():
    genome, probabilities = order_2_source(260_000, seed=1)
    train, valid, test = genome[:200_000], genome[200_000:230_000], genome[230_000:]
    rows = markov_table([train], [valid], [test], max_order=5)
    entropy = entropy_rate(probabilities)
    one_strand = {
        (row.order, row.smoothing): row.bits_per_base for row in rows if not row.both_strands
    }
    for order in (2, 3, 4, 5):  # longer contexts must not cost anything
        assert abs(one_strand[order, "interpolated"] - entropy) < 0.01
    assert abs(one_strand[2, "additive"] - entropy) < 0.01
    assert one_strand[1, "interpolated"] > entropy + 0.02
    both = next(row for row in rows if row.order == 2 and row.both_strands)
    assert both.bits_per_base > one_strand[2, "additive"] + 0.02  # this source has a direction


def test_both_strands_sees_the_complementary_strand():
    genome, _ = order_2_source(60_000, seed=2)
    other = np.frombuffer(reverse_complement(genome.tobytes().decode()).encode(), dtype=np.uint8)
    args = ([genome[:40_000]], [other[:10_000]], 2)
    single, double = fit_markov(*args, both_strands=False), fit_markov(*args, both_strands=True)
    assert double.bits_per_base([other]) < single.bits_per_base([other]) - 0.02


def test_the_table_holds_what_single_fits_give():
    genome, _ = order_2_source(4_000, seed=3)
    parts = [genome[:1500], genome[1500:3000]], [genome[3000:3500]], [genome[3500:]]
    rows = markov_table(*parts, max_order=4)
    assert [(row.order, row.smoothing, row.both_strands) for row in rows] == [
        (order, smoothing, both)
        for order in range(5)
        for smoothing in ("additive", "interpolated")
        for both in (False, True)
    ]
    for row in rows:
        model = fit_markov(*parts[:2], row.order, row.both_strands, row.smoothing)
        assert row.parameters == model.parameters
        assert row.bits_per_base == pytest.approx(model.bits_per_base(parts[2]), rel=1e-12)


def test_nothing_is_counted_across_run_borders():
    joined = fit_markov(runs(["AAAACCCC"]), runs(["ACGT"]), 1, False)
    apart = fit_markov(runs(["AAAA", "CCCC"]), runs(["ACGT"]), 1, False)
    after_a = slice(1, 2)  # order 1, context A
    assert joined.log2_table[after_a, 1] > apart.log2_table[after_a, 1]


@pytest.mark.parametrize(
    ("train", "valid", "order", "words"),
    [
        (["NN"], ["ACGT"], 1, "training runs hold no A, C, G or T"),
        (["ACGT"], ["A", "CN"], 1, "give a longer validation or test part"),
        (["ACGT"], [], 1, "give a longer validation or test part"),
        (["ACGT"], ["ACGT"], 13, "choose one from 0 to 12"),
        (["ACGT"], ["ACGT"], -1, "choose one from 0 to 12"),
    ],
)
def test_bad_input_names_the_fix(train, valid, order, words):
    with pytest.raises(UserError, match=words):
        fit_markov(runs(train), runs(valid), order, both_strands=True)
