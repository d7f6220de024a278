"""Gated MLP: W3 (act(W1 x) * (W2 x)) (arXiv:2002.05202), W1 and W2 in one product."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.linear import column_weight, row_weight
from megatron_hyena.layers.provider import Provider

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": lambda x: x,
}


def activation(config: HyenaGLTConfig, block: int) -> Callable[[Tensor], Tensor]:
    """The gate activation of the MLP of a block, counted from 0."""
    if config.mlp_activation == "evo2":
        return ACTIVATIONS["identity" if block else "gelu"]
    return ACTIVATIONS[config.mlp_activation]


class GatedMLP(nn.Module):
    """The channel mixer of a block; `gate_value` [2 F, h] holds the blocks W1 and W2."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider, block: int = 0) -> None:
        super().__init__()
        self.provider = provider
        self.activation = activation(config, block)
        self.gate_value = column_weight(config, 2 * config.ffn, provider.size, blocks=2)
        self.output = row_weight(config, config.ffn, provider.size)

    def forward(self, x_LBH: Tensor) -> Tensor:
        """x [L, B, h] -> [L, B, h]."""
        x = self.provider.enter(x_LBH)
        gate, value = F.linear(x, self.gate_value).chunk(2, dim=-1)
        out = F.linear(self.activation(gate) * value, self.output)
        return self.provider.leave(out).to(x_LBH.dtype)
