"""The parts of a step against loops over all positions: filters, norms, GELU, memory order."""

from __future__ import annotations

from math import erf, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_hyena import HyenaGLT
from megatron_hyena.generation.column_first import column_first
from megatron_hyena.generation.filters import Filter, Modes, Taps
from megatron_hyena.generation.mlp import MlpStep
from megatron_hyena.generation.norm import NormStep
from megatron_hyena.layers.mlp import GatedMLP
from megatron_hyena.layers.norm import RMSNorm
from tests.oracles.drawing import draw, small_config, small_model

ROWS, CHANNELS, LENGTH = 3, 4, 12
ACTIVE = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 0]] * 2).bool()
"""Rows that have a position, [LENGTH, ROWS]."""


def by_loops(taps: np.ndarray, z: np.ndarray, before: float, behind: float) -> np.ndarray:
    """y[t] = behind + sum_k h[:, k] (z[t - k] + before), z [L, D]."""
    y = np.full_like(z, behind)
    for t in range(len(z)):
        for k in range(min(t + 1, taps.shape[1])):
            y[t] += taps[:, k] * (z[t - k] + before)
    return y


def assert_steps(step: Filter, taps: Tensor, biases: tuple[float, float] = (0.0, 0.0)) -> None:
    """Rows that pause, leave and go on twice are each as if they were alone."""
    step.settle(ROWS)
    z, past = draw(LENGTH, ROWS, CHANNELS, seed=1), [list[Tensor]() for _ in range(ROWS)]
    for t in range(LENGTH):
        if t == LENGTH // 2:
            chosen = [1, 2, 2]
            step.select(torch.tensor(chosen))
            step.settle(ROWS)
            past = [list(past[row]) for row in chosen]
        y = step.of(z[t], None if bool(ACTIVE[t].all()) else ACTIVE[t])
        for row in ACTIVE[t].nonzero()[:, 0].tolist():
            past[row].append(z[t, row])
            wanted = by_loops(taps.numpy(), torch.stack(past[row]).numpy(), *biases)[-1]
            assert np.abs(y[row].numpy() - wanted).max() < 1e-12


@pytest.mark.parametrize("length", [1, 2, 5, 30])
def test_taps_and_their_biases(length: int) -> None:
    taps, biases = draw(CHANNELS, length), (0.7, -0.4)
    assert_steps(Taps(taps, ROWS), taps)
    before, behind = (torch.full((CHANNELS,), bias, dtype=torch.float64) for bias in biases)
    assert_steps(Taps(taps, ROWS, None, before, behind), taps, biases)


@pytest.mark.parametrize("turning", [False, True])
def test_modes_and_their_skip(turning: bool) -> None:
    log_pole, residue = -draw(CHANNELS, 5).exp(), draw(CHANNELS, 5, seed=2)
    if turning:
        log_pole = torch.complex(log_pole, draw(CHANNELS, 5, seed=3))
        residue = torch.complex(residue, draw(CHANNELS, 5, seed=4))
    skip = draw(CHANNELS, seed=5)
    lags = torch.arange(LENGTH, dtype=torch.float64)
    taps = (residue[..., None] * (log_pole[..., None] * lags).exp()).sum(1).real.clone()
    taps[:, 0] += skip
    assert_steps(Modes(log_pole, residue, skip, ROWS), taps)


@pytest.mark.parametrize("outside", [False, True])
def test_norms_of_small_vectors(outside: bool) -> None:
    """Of sizes around that of eps, on either side."""
    norm = RMSNorm(6, eps=1e-3, outside=outside).double()
    norm.weight.data.copy_(draw(6))
    x = draw(5, 6, seed=1) * torch.tensor([0.0, 1e-4, 1e-3, 1e-2, 1.0]).double()[:, None]
    with torch.inference_mode():
        assert torch.allclose(NormStep(norm)(x), norm(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("activation", ["gelu", "silu", "identity"])
def test_gated_mlp(activation: str) -> None:
    model = small_model(small_config("S", mlp_activation=activation)).eval()
    mlp = model.blocks[0].mlp
    assert isinstance(mlp, GatedMLP)
    x, stream = 3 * draw(3, 8), draw(3, 8, seed=1)
    found = stream.clone()
    with torch.inference_mode():
        step = MlpStep(mlp)
        step.settle(3)
        step.add(x, found)
    gate, value = (x @ mlp.gate_value.detach().t()).chunk(2, dim=1)
    acts = {
        "gelu": lambda g: g * (1 + erf(g / sqrt(2))) / 2,
        "silu": lambda g: g / (1 + np.exp(-g)),
        "identity": lambda g: g,
    }
    acted = torch.from_numpy(np.vectorize(acts[activation])(gate.numpy()))
    wanted = stream + (acted * value) @ mlp.output.detach().t()
    assert (found - wanted).abs().max() < 1e-12


def test_matrices_lie_by_their_longer_side() -> None:
    model = column_first(HyenaGLT(small_config("SA", ffn_hidden_size=12)))
    matrices = {
        n: p for n, p in model.blocks.named_parameters() if p.dim() == 2 and "taps" not in n
    }
    for name in ("0.mixer.projection", "1.mixer.projection", "0.mlp.gate_value"):
        assert matrices[name].stride() == (1, len(matrices[name])), name
    assert matrices["0.mlp.output"].shape == (8, 12)
    assert matrices["0.mlp.output"].stride() == (12, 1)
