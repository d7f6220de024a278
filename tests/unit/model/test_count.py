"""Counted costs against real models: parameters, FLOPs by hand, memory as allocated."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena import HyenaGLT
from megatron_hyena.config import Config, HyenaGLTConfig
from megatron_hyena.config.sections import DataSection, ParallelSection, TrainSection
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.model.count import GIB, cost, flops_per_token, meta_model
from tests.oracles.drawing import small_config
from tests.oracles.memory import Allocations

H, F, V, ORDER, WIDTH = 8, 12, 256, 2, 6
BLOCK = H + H + 2 * F * H + F * H
"""Both norms and the MLP of a block of `small_config`."""
HYENA = 3 * H * H + 3 * H * 3 + H * H + H
FILTER = 33 * WIDTH + WIDTH + WIDTH * WIDTH + WIDTH + WIDTH + H * WIDTH
EXPECTED = {
    "S": HYENA + 2 * 7,
    "M": HYENA + 2 * 128 + H,
    "L": HYENA + 2 * 16 * H + H,
    "H": HYENA + ORDER * FILTER + ORDER * H,
    # Taps and scale of motifs; rates, weights and scale of structure; the gate.
    "G": HYENA + ORDER * FILTER + ORDER * H + (10 + 1) * H + (2 * 4 + 1) * H + 2 * H,
    "A": 3 * H * H + H * H + H,
    "W": 3 * H * H + H * H + H,
}


@pytest.mark.parametrize("sign", EXPECTED)
def test_parameters_by_hand(sign: str) -> None:
    config = small_config(sign)
    expected = V * H + H + BLOCK + EXPECTED[sign]
    assert sum(p.numel() for p in HyenaGLT(config).parameters()) == expected
    assert cost(Config(model=config), 1).parameters == expected
    untied = small_config(sign, tie_embeddings=False)
    assert cost(Config(model=untied), 1).parameters == expected + V * H


def test_meta_model_has_no_storage_and_the_shapes_of_the_real_one() -> None:
    config = small_config("SMLHGAW", hyena_output_gate=True)
    ghost, real = meta_model(config), HyenaGLT(config)
    assert all(p.device.type == "meta" for p in ghost.parameters())
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (ghost, real)]
    assert shapes[0] == shapes[1]


def test_parameters_of_one_tensor_rank() -> None:
    config = Config(model=small_config("SMLHGAW"), parallel=ParallelSection(tensor=2))
    local = [cut_of(p).local_shape(2) for p in meta_model(config.model).parameters()]
    expected = sum(torch.Size(shape).numel() for shape in local)
    assert cost(config, 1).parameters_per_rank == expected < cost(config, 1).parameters


MLP = 2 * (2 * F * H + F * H)
FLOPS = {
    # Matrices, featurizer of three streams, two gates, then the convolution.
    "S": 2 * 4 * H * H + H * (2 * 3 * 3 + 2) + H * 2 * 7,
    "M": 2 * 4 * H * H + H * (2 * 3 * 3 + 2) + H * 2 * 128,
    "L": 2 * 4 * H * H + H * (2 * 3 * 3 + 2) + H * 4 * 16,
    # Scores and mean over half of 100 positions, or over a window of 24.
    "A": 2 * 4 * H * H + 2 * 2 * H * 50,
    "W": 2 * 4 * H * H + 2 * 2 * H * 24,
}


@pytest.mark.parametrize("sign", FLOPS)
@pytest.mark.parametrize("tied", [True, False])
def test_flops_by_hand(sign: str, tied: bool) -> None:
    """Three forward passes: itself, and twice its products in backward."""
    forward = FLOPS[sign] + MLP + 2 * V * H
    found = flops_per_token(small_config(sign, tie_embeddings=tied), 100)
    assert found == pytest.approx(3 * forward, rel=1e-12)


def test_flops_of_the_genomic_branches_by_hand() -> None:
    """Over those of H: ten taps, four means, two sums and the gate's product."""
    plain, genomic = (flops_per_token(small_config(sign), 100) for sign in "HG")
    assert genomic - plain == pytest.approx(3 * H * (2 * 10 + 4 * 4 + 3))


def test_flops_grow_with_the_length_only_where_they_should() -> None:
    for sign, grows in {"S": 0, "M": 0, "L": 0, "H": 1, "G": 1, "A": 1, "W": 0}.items():
        config = small_config(sign)
        assert (flops_per_token(config, 4000) > flops_per_token(config, 1000)) == bool(grows)


def test_zero_stages_share_out_the_state() -> None:
    """Bytes per parameter: weight, gradient, two moments, and ZeRO's flat copy of the weights."""
    model = small_config("SA")
    per_parameter = {0: 16, 1: 20 - 12 * 3 / 4, 2: 20 - 16 * 3 / 4, 3: 20 / 4}
    for stage, size in per_parameter.items():
        config = Config(model=model, parallel=ParallelSection(zero_stage=stage))
        found = cost(config, replicas=4)
        assert found.state_gb * GIB / found.parameters == pytest.approx(size), stage


def allocated(config: Config) -> int:
    """Peak bytes of activations of one forward and backward pass."""
    model = HyenaGLT(config.model, recompute=config.parallel.recompute).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids = torch.zeros(config.train.micro_batch_size, config.data.sequence_length, dtype=torch.int64)
    with Allocations() as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            loss = model.token_losses(ids, ids).sum()
        loss.backward()
    return seen.peak


@pytest.mark.parametrize(
    ("recompute", "precision"),
    [
        ("none", "fp32"),
        ("block", "bf16"),
        pytest.param("none", "bf16", marks=pytest.mark.slow),
        pytest.param("block", "fp32", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("pattern", "ffn"), [*((f"[{sign}]4", -1) for sign in "SMLHGAW"), ("[SMLA]2", 0)]
)
def test_memory_estimate_is_within_a_quarter_of_what_is_allocated(
    pattern: str, ffn: int, recompute: str, precision: str
) -> None:
    model = HyenaGLTConfig(pattern=pattern, hidden_size=64, num_heads=2, ffn_hidden_size=ffn)
    config = Config(
        model=model,
        parallel=ParallelSection(recompute=recompute),
        data=DataSection(sequence_length=2048),
        train=TrainSection(micro_batch_size=2, precision=precision),
    )
    estimate = cost(config, 1).activations_gb * GIB
    assert estimate == pytest.approx(allocated(config), rel=0.25)
