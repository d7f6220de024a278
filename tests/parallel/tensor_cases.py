"""What each rank computes for the tensor-parallel proofs, and the same on one dense rank.

Everything is in double precision, so that layouts agree to the last few bits or are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.layers.parameter import cut_of
from megatron_hyena.layers.provider import DenseProvider, Provider
from megatron_hyena.model.hyena_glt import HyenaGLT

# 152 positions are three chunks of L's 64 and ten of W's 16, the last ones ragged.
LENGTH, BATCH, SEED, STEPS = 152, 2, 7, 3
BASE = HyenaGLTConfig(
    hidden_size=32,
    num_heads=4,
    num_filter_groups=8,
    ffn_hidden_size=-1,
    vocab_size=64,
    mr_filter_length=32,
    hyena_filter_order=8,
    max_sequence_length=256,
    attention_window=16,
    init_std=0.2,
)
MODELS = {sign: replace(BASE, pattern=sign) for sign in "SMLHAW"} | {
    "H3gated": replace(BASE, pattern="H", hyena_order=3, hyena_output_gate=True),
    "tied": replace(BASE, pattern="SMLHAW", ffn_hidden_size=48),
    "untied": replace(BASE, pattern="SMLHAW", ffn_hidden_size=48, tie_embeddings=False),
}


@dataclass(frozen=True)
class Layout:
    """How the model is cut: `tensor` ranks, with or without sequence parallelism."""

    tensor: int
    sequence: bool = False
    recompute: bool = False

    def __str__(self) -> str:
        return f"tp{self.tensor}{'sp' * self.sequence}{'-recompute' * self.recompute}"


LAYOUTS = [Layout(1), Layout(2), Layout(2, True), Layout(4), Layout(4, True)]
RECOMPUTED = Layout(2, True, True)


@dataclass(frozen=True)
class Outcome:
    """One rank's results for one model; tensors by parameter name are this rank's parts."""

    initial: dict[str, Tensor]
    logits: Tensor
    loss: Tensor
    label_loss: Tensor
    gradients: dict[str, Tensor]
    trained: dict[str, Tensor]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """ids, targets [B, L] and unequal weights with zeros [B, L]."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, BASE.vocab_size, (BATCH, LENGTH + 1), generator=generator)
    weights = torch.rand(BATCH, LENGTH, generator=generator, dtype=torch.float64)
    return tokens[:, :-1], tokens[:, 1:], weights * (weights > 0.3)


def all_layouts() -> dict[str, dict[str, Outcome]]:
    """On four ranks: every model in every layout."""
    from megatron_hyena.parallel.mesh import build_mesh, destroy_mesh
    from megatron_hyena.parallel.provider import MegatronProvider

    results: dict[str, dict[str, Outcome]] = {}
    for layout in [*LAYOUTS, RECOMPUTED]:
        mesh = build_mesh(layout.tensor)
        provider = MegatronProvider(mesh.tensor, layout.sequence)
        results[str(layout)] = {
            name: train(config, provider, layout.recompute) for name, config in MODELS.items()
        }
        destroy_mesh()
    return results


def train(config: HyenaGLTConfig, provider: Provider, recompute: bool = False) -> Outcome:
    """Forward, backward, then `STEPS` steps of AdamW clipped to the global norm."""
    model = HyenaGLT(config, provider, seed=SEED, recompute=recompute)
    initial = _copies(model)
    model.double()
    if not isinstance(provider, DenseProvider):
        from megatron_hyena.parallel.provider import sum_partial_gradients

        sum_partial_gradients(model, provider)  # type: ignore[arg-type]
    ids, targets, weights = batch()
    with torch.no_grad():
        output = model(ids, labels=ids)
    assert output.loss is not None
    gradients: dict[str, Tensor] = {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = (model.token_losses(ids, targets) * weights).sum() / weights.sum()
        loss.backward()
        if step == 0:
            first = loss.detach()
            gradients = {n: _gradient(p).clone() for n, p in model.named_parameters()}
        _clip(model, provider, largest=0.1)
        optimizer.step()
    return Outcome(initial, output.logits, first, output.loss, gradients, _copies(model))


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _clip(model: nn.Module, provider: Any, largest: float) -> None:
    """The parts of cut parameters are summed over ranks; copies count once."""
    if isinstance(provider, DenseProvider):
        nn.utils.clip_grad_norm_(model.parameters(), largest)
        return
    parts = torch.zeros((), dtype=torch.float64)
    copies = parts.clone()
    for parameter in model.parameters():
        squares = _gradient(parameter).square().sum()
        if cut_of(parameter).dim is None:
            copies += squares
        else:
            parts += squares
    torch.distributed.all_reduce(parts, group=provider.group)
    factor = largest / ((parts + copies).sqrt() + 1e-6)
    for parameter in model.parameters():
        _gradient(parameter).mul_(factor.clamp(max=1.0))
