"""Bits per base of a model along held-out runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_hyena.data.batch import Case, stacked_batch
from megatron_hyena.data.windows import SequentialWindows

_BASES = np.isin(np.arange(256), list(b"ACGTUacgtu"))

TokenLosses = Callable[..., Tensor]
"""(input ids [B, L], targets [B, L]) -> nats [B, L]; `tracks=` is given where windows have some."""


@torch.no_grad()
def score_runs(
    token_losses: TokenLosses,
    windows: SequentialWindows,
    batch_size: int,
    watch: Callable[[Iterable[int]], Iterable[int]] = iter,
    case: Case | None = None,
) -> list[NDArray[np.float64]]:
    """-log2 P(base | the bases before it) for every base of every run.

    Args:
        token_losses: the model.
        windows: they score each base but the first of a run exactly once.
        batch_size: windows per forward pass.
        watch: wraps the batch numbers, for a progress bar.
        case: whether the model knows upper case alone (`data.upper_case`).
    Returns:
        One array [run length] per run; NaN at the first base and where the byte is not one of
        A, C, G, T, U in either case. The model must get the case right too, unless folded.
    """
    bits = [np.full(run.length, np.nan) for run in windows.runs]
    for first in watch(range(0, len(windows), batch_size)):
        chosen = range(first, min(first + batch_size, len(windows)))
        weights = [windows.weights(i) for i in chosen]
        batch = stacked_batch([windows.window(i) for i in chosen], weights, case)
        beside = {"tracks": batch.tracks} if batch.tracks else {}
        nats = token_losses(batch.input_ids, batch.targets, **beside).double().numpy()
        targets = batch.targets.numpy()
        for row, index in enumerate(chosen):
            run, start = windows.place(index)
            scored = np.flatnonzero((weights[row] > 0) & _BASES[targets[row]])
            bits[run][start + 1 + scored] = nats[row, scored] / math.log(2)
    return bits


def mean_bits(bits: Iterable[NDArray[np.float64]]) -> tuple[float, int]:
    """(mean bits, number) of all scored bases."""
    joined = np.concatenate(list(bits))
    scored = joined[np.isfinite(joined)]
    return float(scored.mean()) if len(scored) else math.nan, len(scored)
