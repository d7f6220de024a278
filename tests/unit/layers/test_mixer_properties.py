"""What every mixer promises beside its equation: precision, memory, shapes, first weights."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_hyena.config import SIGNS, HyenaGLTConfig
from megatron_hyena.layers.parameter import cut_of, initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.striped import HyenaLI, HyenaMR
from megatron_hyena.model.hyena_glt import mixer_class
from tests.oracles.drawing import draw, small_config, small_mixer
from tests.oracles.memory import Allocations


def fresh(config: HyenaGLTConfig) -> torch.nn.Module:
    """A mixer in fp32 with its first weights."""
    mixer = mixer_class(config.signs[0])(config, DenseProvider())
    initialise(mixer, 0, 0, 1)
    return mixer


@pytest.mark.parametrize("sign", SIGNS)
def test_bf16_in_bf16_out_close_to_fp32(sign: str) -> None:
    mixer = fresh(small_config(sign, hidden_size=64, init_std=0.125))
    x = draw(300, 2, 64).to(torch.bfloat16)
    exact = mixer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        low = mixer(x)
    assert low.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in mixer.parameters())
    error = (low.float() - exact).norm() / exact.norm()
    assert error < 1.5e-2, f"relative error {error:.1e}; bf16 has 8 bits"


@pytest.mark.parametrize("sign", "SMLH")
def test_filters_receive_fp32_gradients_under_autocast(sign: str) -> None:
    mixer = fresh(small_config(sign, hidden_size=64, init_std=0.125))
    x = draw(300, 1, 64).float()
    mixer(x).square().sum().backward()
    exact = {n: p.grad.clone() for n, p in mixer.named_parameters() if p.grad is not None}
    mixer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(x)
    out.float().square().sum().backward()
    assert exact.keys() == dict(mixer.named_parameters()).keys()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - exact[name]).norm() / exact[name].norm()
        assert error < 5e-2, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("sign", "SML")
def test_nothing_as_large_as_channels_times_modes_times_length_is_made(sign: str) -> None:
    """The largest tensor of forward and backward is the three projections together."""
    config = small_config(sign, hidden_size=64, num_filter_groups=8)
    mixer, length = fresh(config), 4096
    x = torch.randn(length, 1, 64, requires_grad=True)
    with Allocations() as seen:
        mixer(x).sum().backward()
    unit = 4 * 64 * length  # bytes of one [D, L] tensor
    assert seen.largest <= 3.1 * unit
    assert seen.peak <= 24 * unit


def test_memory_of_the_long_filter_is_linear_in_the_length() -> None:
    mixer = fresh(small_config("L", hidden_size=32))
    peaks = []
    for length in (4096, 16384):
        x = torch.randn(length, 1, 32, requires_grad=True)
        with Allocations() as seen:
            mixer(x).sum().backward()
        peaks.append(seen.peak)
    assert math.log(peaks[1] / peaks[0], 4) < 1.05


@pytest.mark.parametrize("sign", SIGNS)
def test_no_parameter_or_buffer_knows_a_sequence_length(sign: str) -> None:
    def shapes(**changes: int) -> dict[str, tuple[int, ...]]:
        mixer = small_mixer(small_config(sign, **changes))
        named = [*mixer.named_parameters(), *mixer.named_buffers()]
        return {name: tuple(tensor.shape) for name, tensor in named}

    assert shapes() == shapes(max_sequence_length=1009, attention_window=997)


def wide(sign: str) -> dict[str, torch.Tensor]:
    config = HyenaGLTConfig(pattern=f"[{sign}]8", hidden_size=512, num_heads=8)
    return {n: p.detach() for n, p in fresh(config).named_parameters()}


def test_first_weights_of_matrices() -> None:
    for sign in SIGNS:
        drawn = wide(sign)
        assert drawn["projection"].std().item() == pytest.approx(0.02, rel=0.02)
        assert drawn["projection"].mean().abs().item() < 1e-4
        # Eight blocks write twice each to the residual stream.
        assert drawn["output"].std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.02)
        assert drawn["bias"].abs().max().item() == 0.0


def test_first_weights_of_short_filters() -> None:
    featurizer = wide("S")["featurizer"]
    assert featurizer.abs().max().item() == pytest.approx(1 / math.sqrt(3), rel=0.01)
    assert featurizer.std().item() == pytest.approx(1 / 3, rel=0.05)
    taps = wide("S")["taps"]
    assert taps.shape == (32, 7)
    assert taps.abs().max().item() <= 1 / math.sqrt(7)
    assert wide("M")["taps"].std().item() == pytest.approx(1e-5 / math.sqrt(128), rel=0.05)


def test_first_weights_of_long_filters() -> None:
    drawn = wide("L")
    rate = drawn["log_rate"].exp()
    assert drawn["log_rate"].shape == (512, 16)
    assert 0.01 / math.e <= rate.min() < 0.011 / math.e
    assert 0.099 / math.e < rate.max() <= 0.1 / math.e
    assert drawn["residue"].std().item() == pytest.approx(0.1 / 4, rel=0.03)
    for sign in "ML":
        assert torch.equal(wide(sign)["skip"], torch.ones(512))
    assert torch.equal(wide("H")["skip"], torch.ones(512, 2))
    assert torch.equal(wide("H")["filters.0.frequency"], torch.ones(64))


def test_decay_rates_of_mr_span_all_groups() -> None:
    """Weakest: 0.01 (weak), 0.1, 1 (strong) nats over the taps; strongest: 100."""
    for name, slowest in (("weak", 0.01), ("normal", 0.1), ("strong", 1.0)):
        config = small_config("M", mr_decay=name, num_filter_groups=4)
        mixer = mixer_class("M")(config, DenseProvider())
        assert isinstance(mixer, HyenaMR)
        decay = mixer.decay(torch.float64)
        last = -torch.log(decay[:, -1])
        assert last[0].item() == pytest.approx(slowest)
        assert last[-1].item() == pytest.approx(100.0)
        assert torch.equal(decay[:, 0], torch.ones(4, dtype=torch.float64))


def test_modes_keep_their_roles() -> None:
    """Modes and taps are filters: no weight decay, own learning rate."""
    mixer = mixer_class("L")(small_config("L"), DenseProvider())
    assert isinstance(mixer, HyenaLI)
    roles = {name: cut_of(p).role for name, p in mixer.named_parameters()}
    assert roles == {
        "projection": "matrix",
        "featurizer": "filter",
        "output": "matrix",
        "bias": "vector",
        "log_rate": "filter",
        "residue": "filter",
        "skip": "filter",
    }
