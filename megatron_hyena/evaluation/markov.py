"""Markov models of a genome: the baselines a language model has to beat.

A Markov model of order k predicts a base from the k bases before it. Here it is fitted as well as
its kind allows, so that beating it means something: counts come from the training runs, on one
strand or on both; every smoothing parameter minimises the bits per base of the validation runs;
the runs that are finally scored take no part. Two smoothings, with c and n the counts of a base
and of its context in training and b the base:

* additive:      P_k(b) = (c_k(b) + a) / (n_k + 4 a), one pseudo-count a;
* interpolated:  P_k(b) = (c_k(b) + a_k P_{k-1}(b)) / (n_k + a_k), P_{-1} = 1/4: the predictive mean
  of a hierarchical Dirichlet prior (MacKay and Peto, 1995), one strength a_j for each order j <= k.

What is scored: each A, C, G or T (or U, taken for T; case folded) but the first byte of every run.
Any other byte is not scored, and the context starts afresh behind it. Where fewer than k bases are
at hand (at the start of a run, behind another byte) the same model's table for the available bases
predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from megatron_hyena.errors import UserError
from megatron_hyena.evaluation.contexts import (
    UNKNOWN,
    Counts,
    Runs,
    count_scored,
    count_training,
    first_row_of,
    level_of,
    lower_order,
    marginalise,
    pieces,
)

Smoothing = Literal["additive", "interpolated"]
MAX_ORDER = 12  # 22 million rows; each further order takes four times the memory
FULL_SWEEPS = 4  # passes of coordinate descent over the strengths


@dataclass(frozen=True, eq=False)
class MarkovModel:
    """A fitted Markov model. `log2_table` is float64 [rows, 4] laid out as in `contexts`."""

    order: int
    smoothing: Smoothing
    both_strands: bool
    parameters: tuple[float, ...]
    """The pseudo-count (additive), or the strengths a_0 .. a_order (interpolated)."""
    log2_table: NDArray[np.float64]

    def log2_probabilities(self, run: NDArray[np.uint8]) -> NDArray[np.float64]:
        """log2 P(base) at each position of `run` (uint8 [n]) as float64 [n]; NaN: not scored."""
        result = np.full(len(run), np.nan)
        for start, rows, codes in pieces(run, self.order):
            known = np.flatnonzero(codes < UNKNOWN)
            result[start + known] = self.log2_table[rows[known], codes[known]]
        result[:1] = np.nan
        return result

    def bits_per_base(self, runs: Runs) -> float:
        """Mean of -log2 P over the scored bases of all runs; UserError if there is none."""
        return _bits(count_scored(runs, self.order), self.log2_table)


@dataclass(frozen=True)
class MarkovRow:
    """One line of the baseline table: a fitted variant and its bits per base on the test runs."""

    order: int
    smoothing: Smoothing
    both_strands: bool
    bits_per_base: float
    parameters: tuple[float, ...]


def fit_markov(
    train_runs: Runs,
    valid_runs: Runs,
    order: int,
    both_strands: bool,
    smoothing: Smoothing = "interpolated",
) -> MarkovModel:
    """Counts `train_runs` (with their reverse complements if `both_strands`) and smooths.

    Runs are uint8 arrays of ASCII bases; nothing is counted across their borders. The smoothing
    parameters are those with the fewest bits per base on `valid_runs`. Raises UserError for an
    order outside 0 .. 12 and for runs that hold no base.
    """
    _check_order(order)
    counts = marginalise(count_training(train_runs, order, both_strands), order)
    valid = count_scored(valid_runs, order)
    return _fit(counts, valid, order, both_strands, smoothing)


def markov_table(
    train_runs: Runs, valid_runs: Runs, test_runs: Runs, max_order: int = 8
) -> list[MarkovRow]:
    """Fits every order 0 .. `max_order`, smoothing and strand choice; scores `test_runs`.

    Rows come by order, then smoothing, then strands. Raises UserError as `fit_markov`.
    """
    _check_order(max_order)
    valid, test = count_scored(valid_runs, max_order), count_scored(test_runs, max_order)
    training = {
        both: marginalise(count_training(train_runs, max_order, both), max_order)
        for both in (False, True)
    }
    rows = []
    for order in range(max_order + 1):
        order_valid, order_test = (lower_order(part, max_order, order) for part in (valid, test))
        for smoothing in get_args(Smoothing):
            for both, counts in training.items():
                counts = counts[: first_row_of(order + 1)]
                model = _fit(counts, order_valid, order, both, smoothing)
                bits = _bits(order_test, model.log2_table)
                rows.append(MarkovRow(order, smoothing, both, bits, model.parameters))
    return rows


def _check_order(order: int) -> None:
    if not 0 <= order <= MAX_ORDER:
        raise UserError(f"Markov order {order} is out of range; choose one from 0 to {MAX_ORDER}")


def _fit(
    counts: Counts, valid: Counts, order: int, both_strands: bool, smoothing: Smoothing
) -> MarkovModel:
    parameters: tuple[float, ...]
    if smoothing == "additive":
        parameters = (_choose_pseudo_count(counts, valid),)
        table = _additive(counts, parameters[0])
    else:
        parameters = _choose_strengths(counts, valid, order)
        table = _interpolated(counts, parameters)
    return MarkovModel(order, smoothing, both_strands, parameters, np.log2(table))


def _additive(counts: Counts, pseudo_count: float) -> NDArray[np.float64]:
    return (counts + pseudo_count) / (counts.sum(axis=1, keepdims=True) + 4 * pseudo_count)


def _interpolated(counts: Counts, strengths: Sequence[float]) -> NDArray[np.float64]:
    table = np.empty(counts.shape)
    prior = np.full((1, 4), 0.25)
    for order, strength in enumerate(strengths):
        seen = level_of(counts, order)
        level = (seen + strength * prior) / (seen.sum(axis=1, keepdims=True) + strength)
        level_of(table, order)[:] = level
        prior = np.tile(level, (4, 1))
    return table


def _choose_pseudo_count(counts: Counts, valid: Counts) -> float:
    cells = np.nonzero(valid)
    weight, seen, total = valid[cells], counts[cells], counts.sum(axis=1)[cells[0]]

    def bits(pseudo_count: float) -> float:
        return _total_bits(weight, (seen + pseudo_count) / (total + 4 * pseudo_count))

    return _minimise(bits)


def _choose_strengths(counts: Counts, valid: Counts, order: int) -> tuple[float, ...]:
    """Strengths of least validation bits: greedy from order 0 up, then coordinate descent.

    Only the cells (context, base) that occur in validation matter, weighted by how often they do.
    A cell whose context has m bases holds zeros at the orders above m, which leaves P_m unchanged.
    """
    rows, bases = np.nonzero(valid)
    weight = valid[rows, bases].astype(np.float64)
    seen, total = np.zeros((2, order + 1, len(rows)))
    context_totals = counts.sum(axis=1)
    for level in range(order + 1):
        long_enough = np.flatnonzero(rows >= first_row_of(level))
        length_offset = _length_offsets(rows[long_enough], order)
        context = (rows[long_enough] - length_offset) % 4**level
        seen[level, long_enough] = counts[first_row_of(level) + context, bases[long_enough]]
        total[level, long_enough] = context_totals[first_row_of(level) + context]

    def predict(prior: NDArray, levels: range, strengths: Sequence[float]) -> NDArray:
        for level in levels:
            prior = (seen[level] + strengths[level] * prior) / (total[level] + strengths[level])
        return prior

    def best(level: int, strengths: list[float], top: int) -> float:
        prior = predict(np.full(len(rows), 0.25), range(level), strengths)

        def bits(strength: float) -> float:
            trial = [*strengths[:level], strength, *strengths[level + 1 :]]
            return _total_bits(weight, predict(prior, range(level, top + 1), trial))

        return _minimise(bits)

    chosen = [1.0] * (order + 1)
    for level in range(order + 1):
        chosen[level] = best(level, chosen, top=level)
    for _ in range(FULL_SWEEPS if order else 0):
        previous = list(chosen)
        for level in reversed(range(order + 1)):
            chosen[level] = best(level, chosen, top=order)
        if np.allclose(np.log(chosen), np.log(previous), atol=0.02):
            break
    return tuple(chosen)


def _length_offsets(rows: NDArray[np.intp], order: int) -> NDArray[np.int64]:
    """The first row of the order to which each row belongs."""
    offsets = np.array([first_row_of(m) for m in range(order + 1)])
    return offsets[np.searchsorted(offsets, rows, side="right") - 1]


def _minimise(function: Callable[[float], float]) -> float:
    """The minimum over 1e-3 .. 1e6 on a logarithmic grid, refined to about 1 %."""
    grid = np.linspace(-3, 6, 10)
    for _ in range(5):
        values = [function(10.0**exponent) for exponent in grid]
        centre, step = grid[int(np.argmin(values))], grid[1] - grid[0]
        grid = np.linspace(max(-3, centre - step), min(6, centre + step), 7)
    return float(10.0**centre)


def _total_bits(weight: NDArray, probabilities: NDArray[np.float64]) -> float:
    """Not as a product `@`: on a busy machine its threads wait longer than they work."""
    return -float((weight * np.log2(probabilities)).sum())


def _bits(scored: Counts, log2_table: NDArray[np.float64]) -> float:
    return -float((scored * log2_table).sum() / scored.sum())
