"""Every layout computes the dense model's numbers: outputs, gradients, optimizer steps.

The oracle is the dense model in the same process as pytest, in double precision; 1e-10 leaves
room for a different order of summation and for nothing else. Four gloo ranks; the layouts that are
marked slow run by hand.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.parallel.layout_cases import (
    BY_HAND,
    CASES,
    MERGED_CASES,
    RECOMPUTED,
    REPRESENTATIVE,
    THE_OTHERS,
    Layout,
    on_one,
    on_ranks,
)
from tests.parallel.ranks import run_ranks

pytestmark = pytest.mark.parallel

TOLERANCE = 1e-10


def by_hand(values, slow):
    """`values` as parameters; those in `slow` are run by hand."""
    return [pytest.param(x, marks=pytest.mark.slow if x in slow else ()) for x in values]


every_layout = pytest.mark.parametrize(
    "layout", by_hand([*REPRESENTATIVE, *THE_OTHERS], THE_OTHERS), ids=str
)
every_case = pytest.mark.parametrize("name", by_hand(CASES, BY_HAND))
merged_case = pytest.mark.parametrize("name", by_hand(MERGED_CASES, BY_HAND))
dense = lru_cache(on_one)


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """(layout, case) -> outcome on each of four ranks; layouts and cases of a kind in one job."""

    @lru_cache
    def outcomes(layouts: tuple[Layout, ...], names: tuple[str, ...]):
        folder = tmp_path_factory.mktemp("ranks")
        return run_ranks(on_ranks, 4, folder, list(layouts), list(names), timeout=540)

    def of(layout: Layout, name: str):
        ours = (*REPRESENTATIVE, RECOMPUTED)
        names = tuple(n for n in CASES if (n in BY_HAND) == (name in BY_HAND))
        ranks = outcomes(ours if layout in ours else tuple(THE_OTHERS), names)
        return [rank[str(layout)] for rank in ranks]

    return of


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


def assembled(ranks, layout, name, field):
    """{parameter: full tensor} from the first tensor group; all copies must agree to the bit."""
    full = {}
    for key, parameter in HyenaGLT(CASES[name].config).named_parameters():
        cut = cut_of(parameter)
        parts = [getattr(rank[name], field)[key] for rank in ranks]
        for at, part in enumerate(parts):
            assert torch.equal(part, parts[0 if cut.dim is None else at % layout.tensor]), key
        full[key] = cut.join(parts[: layout.tensor])
        assert full[key].shape == parameter.shape, key
    return full


@every_case
@every_layout
def test_initial_weights_are_the_dense_ones(parallel, layout, name):
    for key, value in assembled(parallel(layout, name), layout, name, "initial").items():
        assert torch.equal(value, dense(name).initial[key]), key


@every_case
@every_layout
def test_outputs_are_the_dense_ones(parallel, layout, name):
    reference, length = dense(name), CASES[name].length
    for rank in parallel(layout, name):
        outcome = rank[name]
        stop = outcome.start + outcome.nll.shape[1]
        if "(" not in CASES[name].config.pattern:
            assert stop - outcome.start in (length // layout.context, 38, 76, 152)
        for field in ("logits", "nll"):
            wanted = getattr(reference, field)[outcome.rows, outcome.start : stop]
            value = getattr(outcome, field)[:, : wanted.shape[1]]
            assert value.dtype == torch.float64
            # A rank may hold nothing but padding.
            assert not wanted.numel() or relative_error(value, wanted) <= TOLERANCE, field


@merged_case
@every_layout
def test_chunks_are_the_dense_ones(parallel, layout, name):
    """Identical openings, neither few nor most of all; the same state of the rate control."""
    reference = dense(name)
    for rank in parallel(layout, name):
        outcome = rank[name]
        at, size = outcome.slice
        for number, opens in outcome.openings.items():
            whole = reference.openings[number][outcome.rows]
            assert 0.1 < whole.float().mean() < 0.9
            mine = whole[:, at * opens.shape[1] : (at + 1) * opens.shape[1]]
            assert torch.equal(opens[:, : mine.shape[1]], mine)
            assert opens.shape[1] * size >= whole.shape[1]
        assert outcome.rates.keys() == reference.rates.keys()
        for key, value in reference.rates.items():
            assert torch.equal(outcome.rates[key], value), key
        assert torch.allclose(outcome.penalty, reference.penalty, rtol=TOLERANCE, atol=0.0)
        assert CASES[name].config.merger == "static" or reference.penalty > 0


@every_case
@every_layout
def test_losses_are_the_dense_ones(parallel, layout, name):
    reference = dense(name)
    halves = parallel(layout, name)
    for rank in halves:
        assert relative_error(rank[name].loss, reference.loss) <= TOLERANCE
    if 4 // (layout.tensor * layout.context) == 1:  # else each data rank has other labels
        assert relative_error(halves[0][name].label_loss, reference.label_loss) <= TOLERANCE


@every_case
@every_layout
def test_every_gradient_is_the_dense_one(parallel, layout, name):
    gradients = assembled(parallel(layout, name), layout, name, "gradients")
    assert gradients.keys() == dense(name).gradients.keys()
    for key, wanted in dense(name).gradients.items():
        if ".conservation." in key:  # there is no track
            assert not wanted.any() and not gradients[key].any(), key
            continue
        assert wanted.norm() > 0, key
        assert relative_error(gradients[key], wanted) <= TOLERANCE, key


@every_case
@every_layout
def test_three_optimizer_steps_end_at_the_dense_weights(parallel, layout, name):
    trained = assembled(parallel(layout, name), layout, name, "trained")
    for key, wanted in dense(name).trained.items():
        start = dense(name).initial[key].double()
        # Relative to the distance moved: weights that hardly move must be as right.
        assert relative_error(trained[key] - start, wanted - start) <= TOLERANCE, key


@every_case
def test_recomputation_changes_no_bit(parallel, name):
    (layout,) = (x for x in REPRESENTATIVE if (x.tensor, x.context) == (2, 2))
    for stored, recomputed in zip(parallel(layout, name), parallel(RECOMPUTED, name), strict=True):
        for key, gradient in stored[name].gradients.items():
            assert torch.equal(gradient, recomputed[name].gradients[key]), key
            assert torch.equal(stored[name].trained[key], recomputed[name].trained[key]), key
