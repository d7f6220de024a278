"""The whole model against its equations, its causality, its loss and its gradients."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from megatron_hyena import HyenaGLT
from megatron_hyena.config import SIGNS
from tests.oracles import language_model
from tests.oracles.drawing import draw_bytes, small_config, small_model, weights

EVO_2 = {
    **{"norm_eps": 0.1, "norm_eps_outside": True, "mlp_activation": "evo2"},
    **{"rope_base": 50.0, "rope_scaling": 4.0, "mr_decay": "none", "se_skip": True},
    "rope_bf16": True,
}
EVO_1 = {"norm_eps_outside": True, "projection_bias": True, "li_poles": "complex"}


@pytest.mark.parametrize("length", [1, 2, 65])
@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("SMLHGAW", {}),
        ("[GH]2", {"hyena_filter": "genomic", "hyena_filter_size": 30}),
        ("[LA]2", {"tie_embeddings": False, "mlp_activation": "silu"}),
        ("S", {"ffn_hidden_size": -1}),
        ("SMLA", EVO_2),
        ("[LA]2", EVO_1),
    ],
)
def test_model_equals_its_equations(pattern: str, changes: dict, length: int) -> None:
    config = small_config(pattern, **changes)
    model, ids = small_model(config), draw_bytes(2, length)
    out = model(ids, labels=ids)
    expected = language_model.logits(ids.numpy(), weights(model), config)
    assert out.logits.shape == (2, length, 256)
    assert out.last_hidden_state.shape == (2, length, 8)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, rtol=0, atol=1e-11 * scale)
    if length > 1:
        nats = language_model.next_byte_loss(expected, ids.numpy())
        assert out.loss.item() == pytest.approx(nats, rel=1e-12)


@pytest.mark.parametrize("sign", SIGNS)
def test_no_output_sees_a_later_byte(sign: str) -> None:
    """Bit for bit; the transform of `H` and `G` rounds differently, so 1e-12 there."""
    model, length = small_model(small_config(f"[{sign}]2")).eval(), 150
    ids = draw_bytes(1, length)
    with torch.no_grad():
        before = model(ids).logits
        for t in (0, 1, 63, 64, 100, 149):
            changed = ids.clone()
            changed[0, t] = (changed[0, t] + 7) % 256
            after = model(changed).logits
            tolerance = 1e-12 * before.abs().max() if sign in "HG" else torch.tensor(0.0)
            assert ((after - before)[:, :t].abs() <= tolerance).all()
            assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize("sign", SIGNS)
def test_prefix_of_the_input_gives_the_prefix_of_the_output(sign: str) -> None:
    """Nothing depends on how long the input happens to be."""
    model, ids = small_model(small_config(f"[{sign}]2")).eval(), draw_bytes(1, 200)
    with torch.no_grad():
        whole = model(ids).logits
        for length in (1, 2, 63, 64, 65, 130):
            part = model(ids[:, :length]).logits
            torch.testing.assert_close(part, whole[:, :length], rtol=1e-11, atol=1e-11)


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    model, ids = small_model(small_config("SMLHGAW")).eval(), draw_bytes(3, 40)
    with torch.no_grad():
        together = model(ids).logits
        for row in range(3):
            alone = model(ids[row : row + 1]).logits
            torch.testing.assert_close(alone[0], together[row], rtol=1e-11, atol=1e-11)


def test_labels_are_shifted_by_the_model_and_minus_100_is_not_scored() -> None:
    config = small_config("SA")
    model, ids = small_model(config), draw_bytes(2, 9)
    labels = ids.clone()
    labels[0, 3:6] = -100
    labels[:, 0] = -100  # never predicted, so it makes no difference
    expected = language_model.logits(ids.numpy(), weights(model), config)
    nats = language_model.next_byte_loss(expected, labels.numpy())
    assert model(ids, labels).loss.item() == pytest.approx(nats, rel=1e-12)
    losses = model.token_losses(ids[:, :-1], ids[:, 1:])
    assert losses.shape == (2, 8)
    assert losses.mean().item() == pytest.approx(model(ids, ids).loss.item(), rel=1e-12)


def test_a_loss_without_anything_to_score_is_zero() -> None:
    model, ids = small_model(small_config("S")), draw_bytes(1, 4)
    assert model(ids, torch.full_like(ids, -100)).loss.item() == 0.0
    assert model(ids).loss is None


def test_gradients_of_the_model_by_differences() -> None:
    """Each parameter along one random direction, fp64."""
    model, ids = small_model(small_config("SMLHGAW", tie_embeddings=False)), draw_bytes(2, 30)
    model(ids, ids).loss.backward()
    for index, (name, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(index)
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * way)
                values.append(model(ids, ids).loss.item())
                parameter.sub_(sign * 1e-6 * way)
        assert parameter.grad is not None, name
        slope = (parameter.grad * way).sum().item()
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-4, abs=1e-7), name


def test_recomputation_changes_no_gradient() -> None:
    config, ids = small_config("SMLHGAW"), draw_bytes(2, 70)
    gradients = []
    for recompute in ("none", "block", "LA"):
        model = HyenaGLT(config, seed=3, recompute=recompute).train()
        model(ids, ids).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        for others in gradients[1:]:
            assert torch.equal(gradient, others[name]), name


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_bf16_training_step_is_close_to_fp32(recompute: str) -> None:
    config, ids = small_config("SMLHAW", hidden_size=64, init_std=0.02), draw_bytes(2, 200)
    model = HyenaGLT(config, recompute=recompute).train()
    exact = model(ids, ids).loss
    exact.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, ids).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < 0.1, f"{name}: {error:.2e}"


@pytest.mark.smoke
def test_dense_model_imports_neither_megatron_nor_deepspeed() -> None:
    """Nor a process group: in a fresh process, one forward and backward of every sign."""
    program = """
import sys
import torch
from megatron_hyena import HyenaGLT, HyenaGLTConfig
model = HyenaGLT(HyenaGLTConfig(pattern="SMLHGAW", hidden_size=16, num_heads=2))
ids = torch.zeros(1, 8, dtype=torch.int64)
model(ids, labels=ids).loss.backward()
roots = {name.partition(".")[0] for name in sys.modules}
found = roots & {"megatron", "deepspeed", "transformers", "zarr", "webdataset"}
assert not found, found
assert not torch.distributed.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
