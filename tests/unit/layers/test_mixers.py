"""Each mixer against its equation, written out position by position; and its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from megatron_hyena.config import SIGNS, HyenaGLTConfig
from megatron_hyena.layers.hyena_order import HyenaFilter, HyenaOperator
from megatron_hyena.layers.mlp import GatedMLP
from megatron_hyena.layers.norm import RMSNorm
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider
from tests.oracles import language_model, operators
from tests.oracles.drawing import disturb, draw, small_config, small_mixer, weights

LENGTHS = [1, 2, 23, 24, 25, 63, 64, 65, 200]


def assert_equals_oracle(config: HyenaGLTConfig, length: int, batch: int = 2) -> None:
    mixer = small_mixer(config)
    x = draw(length, batch, config.hidden_size, seed=5)
    expected = language_model.mixer(config.signs[0], x.numpy(), weights(mixer), config)
    found = mixer(x).detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(scale, 1.0))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("sign", SIGNS)
def test_mixer_equals_its_equation(sign: str, length: int) -> None:
    assert_equals_oracle(small_config(sign), length, batch=1 if length > 100 else 2)


@pytest.mark.parametrize("decay", ["weak", "normal", "strong"])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_mr_decays_and_groups(decay: str, groups: int) -> None:
    assert_equals_oracle(small_config("M", mr_decay=decay, num_filter_groups=groups), 140, 1)


@pytest.mark.parametrize("taps", [1, 4, 30])
def test_se_of_other_lengths(taps: int) -> None:
    assert_equals_oracle(small_config("S", se_filter_length=taps), 40)


@pytest.mark.parametrize("taps", [2, 31, 129, 150])
def test_mr_of_other_lengths(taps: int) -> None:
    assert_equals_oracle(small_config("M", mr_filter_length=taps), 170, 1)


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_hyena_of_each_order(order: int, gate: bool) -> None:
    config = small_config("H", hyena_order=order, hyena_output_gate=gate)
    assert_equals_oracle(config, 50)


@pytest.mark.parametrize("window", [1, 5, 64, 1000])
def test_windows(window: int) -> None:
    assert_equals_oracle(small_config("W", attention_window=window), 65, 1)


def test_hyena_has_one_filter_for_each_order() -> None:
    """Filters of a fresh layer differ from each other, as the equation asks."""
    operator = small_mixer(small_config("H", hyena_order=3))
    assert isinstance(operator, HyenaOperator)
    taps: list[Tensor] = [f(40, torch.float64).detach() for f in operator.filters]
    assert len(taps) == 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((taps[one] - taps[other]).abs().max()) > 1e-2


def test_filters_do_not_depend_on_the_length_of_the_input() -> None:
    for sign in "MLH":
        mixer = small_mixer(small_config(sign))
        impulse = torch.zeros(200, 1, 8, dtype=torch.float64)
        impulse[0] = 1.0
        with torch.no_grad():
            long, short = mixer(impulse), mixer(impulse[:70])
        torch.testing.assert_close(long[:70], short, rtol=1e-12, atol=1e-12)


def test_hyena_filter_is_a_prefix_of_itself() -> None:
    made = HyenaFilter(small_config("H"), DenseProvider())
    initialise(made, 0, 0, 1)
    taps = made(251, torch.float64)
    for length in (1, 2, 100, 250):
        torch.testing.assert_close(made(length, torch.float64), taps[:, :length])


def parameter_gradients_agree(module: nn.Module, x: Tensor) -> bool:
    names = [n for n, _ in module.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, values, strict=True)), (x,))

    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    return gradcheck(run, (x.clone().requires_grad_(), *values), fast_mode=True)


@pytest.mark.parametrize("length", [1, 9, 70])
@pytest.mark.parametrize("sign", SIGNS)
def test_mixer_gradients(sign: str, length: int) -> None:
    config = small_config(sign, hyena_output_gate=True)
    assert parameter_gradients_agree(small_mixer(config), draw(length, 2, 8, seed=5))


@pytest.mark.parametrize("activation", ["gelu", "silu", "identity"])
def test_gated_mlp(activation: str) -> None:
    config = small_config(mlp_activation=activation)
    mlp = GatedMLP(config, DenseProvider())
    initialise(mlp, 0, 0, 1)
    disturb(mlp.double())
    x = draw(6, 2, 8)
    expected = language_model.gated_mlp(x.numpy(), weights(mlp), activation)
    np.testing.assert_allclose(mlp(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert parameter_gradients_agree(mlp, x)


def test_rms_norm() -> None:
    norm = RMSNorm(8, eps=1e-2).double()
    initialise(norm, 0, 0, 1)
    disturb(norm)
    x = draw(6, 2, 8)
    expected = language_model.rms_norm(x.numpy(), weights(norm)["weight"], 1e-2)
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, rtol=1e-12, atol=1e-13)
    assert parameter_gradients_agree(norm, x)
    zero = norm(torch.zeros(1, 8, dtype=torch.float64))
    assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.parametrize("autocast", [False, True])
def test_rms_norm_of_bf16_has_fp32_statistics(autocast: bool) -> None:
    """The result is that in fp32, rounded once."""
    norm = RMSNorm(64, eps=1e-6)
    initialise(norm, 0, 0, 1)
    disturb(norm)
    x = draw(50, 2, 64).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = norm(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, norm(x.float()).to(torch.bfloat16))


def test_featurizer_is_a_cross_correlation() -> None:
    """Only the last tap: each position sees itself. Only the first: the one two before."""
    mixer = small_mixer(small_config("S"))
    x = draw(10, 1, 8)
    w = weights(mixer)
    for tap, shift in ((2, 0), (1, 1), (0, 2)):
        w["featurizer"] = np.zeros_like(w["featurizer"])
        w["featurizer"][:, tap] = 1.0
        projected = np.einsum("ri,tbi->rbt", w["projection"], x.numpy())
        shifted = np.zeros_like(projected)
        shifted[:, :, shift:] = projected[:, :, : 10 - shift]
        np.testing.assert_allclose(operators.features(x.numpy(), w, 3)[1], shifted[1::3])
        with torch.no_grad():
            mixer.get_parameter("featurizer").copy_(torch.from_numpy(w["featurizer"]))
        expected = operators.hyena_se(x.numpy(), w)
        np.testing.assert_allclose(mixer(x).detach().numpy(), expected, rtol=0, atol=1e-11)
