"""Packed rows on four ranks that share sequences, and each of their documents alone on one.

A `Packing` puts the edges of documents where a layout may go wrong: on the first and on the last
byte of a rank's stretch, one byte apart, nowhere for several ranks, or on padding only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.documents import Run, numbered, runs
from tests.oracles.drawing import open_branches

SEED = 11
BASE = HyenaGLTConfig(
    hidden_size=16,
    num_heads=4,
    num_filter_groups=4,
    ffn_hidden_size=-1,
    vocab_size=64,
    mr_filter_length=40,
    hyena_filter_order=6,
    max_sequence_length=512,
    attention_window=24,
    init_std=0.3,
)
NOWHERE = replace(BASE, pattern="SMW", se_filter_length=1, mr_filter_length=1, attention_window=1)


@dataclass(frozen=True)
class Model:
    """An architecture, and by sign how its layers exchange."""

    config: HyenaGLTConfig
    exchanges: tuple[tuple[str, str], ...]


MODELS = {
    f"{sign} {exchange}": Model(replace(BASE, pattern=sign), ((sign, exchange),))
    for sign, entry in SIGNS.items()
    for exchange in entry.exchanges
} | {"one tap": Model(NOWHERE, tuple((sign, "halo") for sign in "SMW"))}


@dataclass(frozen=True)
class Packing:
    """Rows of `length` positions on four ranks in a sequence, or two.

    Stretches of `length` / 4 are those of context 4, every other edge is one of context 2.
    """

    length: int

    @property
    def stretch(self) -> int:
        """Positions of one of four ranks, padding included."""
        return -(-self.length // 4)

    @property
    def ids(self) -> Tensor:
        """Document numbers, [5, length]."""
        n = self.stretch
        rows = [
            [n, n + 1, 2 * n, 2 * n + 1],  # begin on a first byte, some end there
            [n - 1, n, 2 * n - 1, 2 * n, 3 * n - 1],  # the same with a last byte
            [1, 3 * n + 1],  # two ranks inside one document
            [],
            [2 * n - 2, 2 * n + 1, self.length - 1],  # across the middle; the last byte alone
        ]
        real = [[t for t in row if 0 < t < self.length] for row in rows]
        return numbered(self.length, [sorted(set(row)) for row in real])

    @property
    def tokens(self) -> Tensor:
        """Input and target of every position, [2, 5, length]."""
        generator = torch.Generator().manual_seed(self.length)
        shape = (2, len(self.ids), self.length)
        return torch.randint(0, BASE.vocab_size, shape, generator=generator)


# Stretches of 68 (longer than a chunk of L and than every halo), of 10 (halos from four ranks), of
# 3 with nothing but padding on the last of four, of 1 with padding on half of the ranks.
PACKINGS = {n: Packing(n) for n in (272, 40, 9, 2)}


@dataclass(frozen=True)
class Outcome:
    """One rank's results; logits and losses are those of its stretch from `start` on.

    `changed` holds the logits after every byte was changed in each of the `rounds` by itself.
    """

    start: int
    logits: Tensor
    losses: Tensor
    gradients: dict[str, Tensor]
    changed: list[Tensor]


def rounds(ids: Tensor) -> list[Tensor]:
    """Where the n-th documents of all rows are [B, L], for each n."""
    found: list[list[Run]] = [
        [run for run in runs(ids) if run[0] == row] for row in range(len(ids))
    ]
    masks = []
    for n in range(max(map(len, found))):
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, start, stop in (row_runs[n] for row_runs in found if n < len(row_runs)):
            mask[row, start:stop] = True
        masks.append(mask)
    return masks


@torch.no_grad()
def _loud(model: HyenaGLT) -> HyenaGLT:
    """In fp64; M's taps and G's scales, which begin near 0 or at it, at the size of the others."""
    open_branches(model, model.provider.rank, model.provider.size)
    for name, parameter in model.double().named_parameters():
        if name.endswith("taps") and parameter.abs().max() < 1e-3:
            parameter.mul_(1e5)
    return model


def on_ranks(layouts: list[tuple[int, int, bool]]) -> dict[tuple[str, str, int], Outcome]:
    """On four ranks: (layout, model, length) -> outcome."""
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh
    from megatron_hyena.parallel.provider import MegatronProvider, sum_partial_gradients

    results = {}
    for tensor, context, sequence in layouts:
        mesh = build_mesh(tensor, context)
        for name, case in MODELS.items():
            provider = MegatronProvider(mesh, sequence, dict(case.exchanges))
            model = _loud(HyenaGLT(case.config, provider, seed=SEED))
            sum_partial_gradients(model, provider)
            for length, packing in PACKINGS.items():
                outcome = _outcome(model, packing)
                for gradient in outcome.gradients.values():
                    dist.all_reduce(gradient, group=mesh.replicas)
                results[f"tp{tensor}-cp{context}", name, length] = outcome
        destroy_mesh()
    return results


def _outcome(model: HyenaGLT, packing: Packing) -> Outcome:
    ids, (tokens, targets) = packing.ids, packing.tokens
    losses = model.token_losses(tokens, targets, ids)
    real = model.stretch(torch.ones_like(ids), 0)
    named = dict(model.named_parameters())
    found = torch.autograd.grad((losses * real).sum(), list(named.values()))
    gradients = {key: gradient.contiguous() for key, gradient in zip(named, found, strict=True)}
    with torch.no_grad():
        logits = model(tokens, document_ids=ids).logits
        others = [(tokens + mask) % BASE.vocab_size for mask in rounds(ids)]
        changed = [model(other, document_ids=ids).logits for other in others]
    start = model.provider.context.rank * losses.shape[1]
    return Outcome(start, logits, losses.detach(), gradients, changed)


def alone(name: str, length: int) -> Outcome:
    """The dense model on each document by itself, laid side by side; gradients summed."""
    model, packing = _loud(HyenaGLT(MODELS[name].config, seed=SEED)), PACKINGS[length]
    (tokens, targets), named = packing.tokens, dict(model.named_parameters())
    logits = torch.zeros(*packing.ids.shape, BASE.vocab_size, dtype=torch.float64)
    losses, total = torch.zeros(packing.ids.shape, dtype=torch.float64), torch.zeros(())
    for row, start, stop in runs(packing.ids):
        here = (slice(row, row + 1), slice(start, stop))
        nats = model.token_losses(tokens[here], targets[here])
        total = total + nats.sum()
        losses[here] = nats.detach()
        logits[here] = model(tokens[here]).logits.detach()
    gradients = torch.autograd.grad(total, list(named.values()))
    return Outcome(0, logits, losses, dict(zip(named, gradients, strict=True)), [])
