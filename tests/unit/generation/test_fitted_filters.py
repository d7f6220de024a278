"""Long filters as modes: exact where a filter is a sum of exponentials, honest where not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_hyena.errors import UserError
from megatron_hyena.generation.decoder import Decoder
from megatron_hyena.generation.fitting import Fit, fitted
from megatron_hyena.generation.plan import Plan
from tests.oracles.drawing import draw, small_config, small_model
from tests.oracles.merged_models import dna


def exponentials(seed: int, channels: int, modes: int, length: int) -> torch.Tensor:
    """Sums of `modes` decaying exponentials, half of them turning; fp64 [channels, length]."""
    random, t = np.random.default_rng(seed), np.arange(length)
    rate = random.uniform(0.002, 0.05, (channels, modes, 1))
    turn = random.uniform(0, 3, (channels, modes, 1)) * (np.arange(modes) % 2)[:, None]
    weight = random.normal(size=(channels, modes, 1))
    return torch.from_numpy((weight * np.exp(-rate * t) * np.cos(turn * t)).sum(1))


def rebuilt(taps: torch.Tensor, fit: Fit) -> np.ndarray:
    """The filter of the modes, one tap after the other."""
    log_pole, residue, skip = (part.numpy() for part in fitted(taps, fit))
    lags = [(residue * np.exp(log_pole * t)).sum(1).real for t in range(taps.shape[1])]
    return np.stack(lags, 1) + np.pad(skip[:, None], ((0, 0), (0, taps.shape[1] - 1)))


def test_sums_of_exponentials_are_found() -> None:
    """4 modes, 2 of which turn and count twice: 6 poles; lag 0 may be anything."""
    taps = exponentials(0, channels=19, modes=4, length=300)
    taps[:, 0] += draw(19)
    fit = Fit(modes=6)
    assert np.abs(rebuilt(taps, fit) - taps.numpy()).max() < 1e-8
    assert fit.errors[0] < 1e-8


def test_the_error_is_that_of_the_worst_channel() -> None:
    taps = exponentials(1, channels=3, modes=4, length=200)
    fit = Fit(modes=2, limit=10.0)
    wrong = (rebuilt(taps, fit) - taps.numpy())[:, 1:]
    relative = np.linalg.norm(wrong, axis=1) / np.linalg.norm(taps[:, 1:].numpy(), axis=1)
    assert fit.errors == [pytest.approx(relative.max(), rel=1e-6)]
    assert fit.errors[0] > 1e-3


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_few_taps(length: int) -> None:
    taps = exponentials(2, channels=2, modes=1, length=length)
    assert np.abs(rebuilt(taps, Fit(modes=4, limit=1e-6)) - taps.numpy()).max() < 1e-6


def test_too_few_modes_are_refused() -> None:
    with pytest.raises(UserError, match=r"2 modes give.*relative error of \d.*above 0\.001; give"):
        fitted(exponentials(1, channels=3, modes=4, length=200), Fit(modes=2))
    with pytest.raises(UserError, match="0 modes within a relative error"):
        Fit(modes=0)


@pytest.mark.parametrize("pattern", ["H", "G", "S(H)L"])
def test_a_model_writes_with_modes(pattern: str) -> None:
    """Close to the exact model by as much as its filters are; with a state of constant size."""
    model = small_model(small_config(pattern, window=8, max_sequence_length=6000)).eval()
    ids = dna(2, 90)
    with torch.no_grad():
        whole = model(ids).logits
    plan = Plan(room=50, longest=90, fit=Fit(modes=12, limit=1e-4))
    decoder = Decoder.read(model, [ids[0, :40], ids[1, :40]], room=50, plan=plan)
    assert plan.fit is not None and 0 < max(plan.fit.errors) < 1e-4
    size = decoder.memory_bytes
    for place in range(40, 90):
        limit = 1e-3 * whole.abs().max()
        assert (decoder.logits - whole[:, place - 1]).abs().max() < limit
        decoder.step(ids[:, place])
    assert decoder.memory_bytes == size
    assert size < Decoder.read(model, [ids[0, :40]] * 2, room=50).memory_bytes


def test_explicit_taps_are_kept() -> None:
    """Modes would go on where they end."""
    model = small_model(small_config("H", hyena_filter_size=9))
    plan = Plan(room=20, longest=40, fit=Fit(modes=2))
    Decoder.read(model, [dna(1, 20)[0]], room=20, plan=plan)
    assert plan.fit is not None and plan.fit.errors == []
