"""Operators and model on a GPU against the same in fp64 on the CPU: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.config import SIGNS
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.model.hyena_glt import mixer_class
from tests.oracles.drawing import draw, draw_bytes, small_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [1, 65, 1000]
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}


def config_of(pattern: str) -> HyenaGLTConfig:
    return small_config(pattern, hidden_size=64, num_filter_groups=4, init_std=0.125)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Zero for two tensors of zeros, as the gradient of a rate is at length 1."""
    return ((found.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-9)).item()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.double().cpu()
    return found


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("sign", SIGNS)
def test_mixer(sign: str, length: int, precision: str) -> None:
    mixer = mixer_class(sign)(config_of(sign), DenseProvider())
    initialise(mixer, 0, 0, 1)
    x, weight = draw(length, 2, 64), draw(length, 2, 64, seed=1)
    exact = mixer.double()(x)
    (exact * weight).sum().backward()
    expected = gradients(mixer)
    mixer.zero_grad()
    mixer.float().cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        found = mixer(x.float().cuda())
    (found * weight.float().cuda()).sum().backward()
    assert relative_error(found, exact) < TOLERANCE[precision]
    for name, gradient in gradients(mixer).items():
        assert relative_error(gradient, expected[name]) < 3 * TOLERANCE[precision], name


@pytest.mark.parametrize("precision", TOLERANCE)
def test_model_and_loss(precision: str) -> None:
    model, ids = HyenaGLT(config_of("SMLHAW")), draw_bytes(2, 300)
    exact = model.double()(ids, ids)
    model.float().cuda()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        found = model(ids.cuda(), ids.cuda())
    assert relative_error(found.logits, exact.logits) < TOLERANCE[precision]
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=TOLERANCE[precision])


@pytest.mark.parametrize("sign", SIGNS)
def test_no_output_sees_a_later_byte(sign: str) -> None:
    model = HyenaGLT(config_of(f"[{sign}]2")).cuda().eval()
    ids = draw_bytes(1, 300).cuda()
    changed = ids.clone()
    changed[0, 200] = (changed[0, 200] + 1) % 256
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    difference = (after - before).abs()
    assert difference[:, :200].max() <= (1e-5 if sign == "H" else 0.0) * before.abs().max()
    assert difference[:, 200].max() > 0


def test_long_filter_never_holds_channels_times_modes_times_length() -> None:
    length, width = 65536, 64
    mixer = mixer_class("L")(config_of("L"), DenseProvider())
    initialise(mixer, 0, 0, 1)
    mixer.cuda()
    x = torch.randn(length, 1, width, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mixer(x).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 26 * 4 * width * length
