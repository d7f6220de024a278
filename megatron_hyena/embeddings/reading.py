"""States along a sequence of any length, piece by piece.

Layers `S`, `M`, `L` and `W` remember a fixed amount, so their state is carried from piece to piece
and every base has the state of the whole pass. `A`, `H` and `G` remember every base, and a model
that is not causal sees those to come: it reads passes that overlap by half, of which the half with
more context counts (`model.decisions.Grid`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch import Tensor

from megatron_hyena.checkpoint.source import TrainedModel
from megatron_hyena.embeddings.options import EmbedOptions
from megatron_hyena.errors import UserError
from megatron_hyena.model.decisions import Grid
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.states import layer_states
from megatron_hyena.model.stream import Stream

TOKENS_AT_ONCE = 16384
"""Bases of the passes that run side by side."""
Read = Callable[[int, int], tuple[Tensor, dict[str, Tensor]]]
"""(start, end) → bytes int64 [end - start] and the tracks beside them, each [end - start]."""


def growing(model: HyenaGLT) -> str:
    """Why a model cannot read in pieces of fixed memory; empty if it can."""
    signs = sorted(set("AHG") & set(model.config.signs))
    if not model.config.causal:
        return "it sees both sides of each base (model.causal=false)"
    return f"its {', '.join(signs)} remember every base" if signs else ""


def check_lengths(trained: TrainedModel, longest: tuple[str, int], options: EmbedOptions) -> None:
    """Refuse what cannot be read with carried state, unless it is as short as in training.

    Args:
        longest: name and bases of the longest sequence.
    Raises:
        UserError: with the windows that would do.
    """
    model, (name, length) = trained.model, longest
    limit = model.config.longest_sequence
    window = min(options.window, length)
    if limit is not None and window > limit:
        raise UserError(
            f"--window {options.window} exceeds model.max_sequence_length={limit}; give less"
        )
    why, known = growing(model), min(n for n in (trained.sequence_length, limit, length) if n)
    if why and not options.window and length > known:
        raise UserError(
            f"{name} has {length} bases, and {trained.name} cannot carry its state along: {why}; "
            f"give --window {known} for passes that overlap by half, or a model of S, M, L and W"
        )


def states_along(
    model: HyenaGLT, read: Read, total: int, options: EmbedOptions
) -> Iterator[Tensor]:
    """Yield states [l, h] of one layer, in order, of all `total` bases that `read` gives."""
    device = next(model.parameters()).device

    def rows(*spans: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        found = [read(*span) for span in spans]
        ids = torch.stack([ids for ids, _ in found]).to(device)
        names = found[0][1]
        return ids, {n: torch.stack([tracks[n] for _, tracks in found]).to(device) for n in names}

    if options.window or not model.config.causal:
        yield from _windowed(model, rows, total, options)
        return
    stream = Stream(model, options.layer)
    for start in range(0, total, options.piece):
        state = stream.feed(*rows((start, min(start + options.piece, total)))).layer_state
        assert state is not None
        yield state[0]


def _windowed(
    model: HyenaGLT,
    rows: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    total: int,
    options: EmbedOptions,
) -> Iterator[Tensor]:
    if not options.window or total <= options.window:
        yield layer_states(model, rows((0, total))[0], options.layer, rows((0, total))[1])[0]
        return
    grid = Grid.of(total, options.window, model.merging_multiple, model.config.causal)
    together = max(1, TOKENS_AT_ONCE // grid.length)
    # The last pass may be shorter, and is then run alone.
    batches = groupby(grid.passes(0, total), key=lambda n: (n // together, n == grid.last))
    for _, numbers in batches:
        chosen = list(numbers)
        begins = [number * grid.step for number in chosen]
        ids, tracks = rows(*((b, min(b + grid.length, total)) for b in begins))
        states = layer_states(model, ids, options.layer, tracks)
        for number, begin, state in zip(chosen, begins, states, strict=True):
            first, end = grid.counted(number)
            yield state[first - begin : end - begin]
