"""Every layout computes the dense model's numbers: outputs, gradients, optimizer steps.

The oracle is the dense model in the same process as pytest, in double precision; 1e-10 leaves
room for a different order of summation and for nothing else.
"""

from __future__ import annotations

import pytest
import torch

from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.parallel.ranks import run_ranks
from tests.parallel.tensor_cases import LAYOUTS, MODELS, RECOMPUTED, all_layouts, train

pytestmark = pytest.mark.parallel

TOLERANCE = 1e-10
every_layout = pytest.mark.parametrize("layout", [*LAYOUTS, RECOMPUTED], ids=str)
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def parallel(tmp_path_factory):
    """Outcome of (layout, model) on each of four ranks."""
    return run_ranks(all_layouts, 4, tmp_path_factory.mktemp("ranks"), timeout=240)


@pytest.fixture(scope="module")
def dense():
    return {name: train(config, DenseProvider()) for name, config in MODELS.items()}


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


def assembled(parallel, layout, name, field):
    """{parameter: full tensor} from the first tensor group; copies must agree to the bit."""
    parts = [getattr(rank[str(layout)][name], field) for rank in parallel[: layout.tensor]]
    full = {}
    for key, parameter in HyenaGLT(MODELS[name]).named_parameters():
        cut, tensors = cut_of(parameter), [part[key] for part in parts]
        if cut.dim is None:
            assert all(torch.equal(tensor, tensors[0]) for tensor in tensors), key
        full[key] = cut.join(tensors)
        assert full[key].shape == parameter.shape, key
    return full


@every_model
@every_layout
def test_initial_weights_are_the_dense_ones(parallel, dense, layout, name):
    for key, value in assembled(parallel, layout, name, "initial").items():
        assert torch.equal(value, dense[name].initial[key]), key


@every_model
@every_layout
def test_outputs_are_the_dense_ones(parallel, dense, layout, name):
    reference = dense[name]
    for rank in parallel:
        outcome = rank[str(layout)][name]
        for field in ("logits", "loss", "label_loss"):
            value, wanted = getattr(outcome, field), getattr(reference, field)
            assert value.dtype == torch.float64
            assert value.shape == wanted.shape
            assert relative_error(value, wanted) <= TOLERANCE, field


@every_model
@every_layout
def test_every_gradient_is_the_dense_one(parallel, dense, layout, name):
    gradients = assembled(parallel, layout, name, "gradients")
    assert gradients.keys() == dense[name].gradients.keys()
    for key, wanted in dense[name].gradients.items():
        assert wanted.norm() > 0, key
        assert relative_error(gradients[key], wanted) <= TOLERANCE, key


@every_model
@every_layout
def test_three_optimizer_steps_end_at_the_dense_weights(parallel, dense, layout, name):
    trained = assembled(parallel, layout, name, "trained")
    for key, wanted in dense[name].trained.items():
        start = dense[name].initial[key].double()
        # Relative to the distance moved: weights that hardly move must be as right.
        assert relative_error(trained[key] - start, wanted - start) <= TOLERANCE, key


@every_model
def test_recomputation_changes_no_bit(parallel, name):
    (layout,) = (x for x in LAYOUTS if (x.tensor, x.sequence) == (2, True))
    for rank in parallel:
        stored, recomputed = rank[str(layout)][name], rank[str(RECOMPUTED)][name]
        for key, gradient in stored.gradients.items():
            assert torch.equal(gradient, recomputed.gradients[key]), key
            assert torch.equal(stored.trained[key], recomputed.trained[key]), key
