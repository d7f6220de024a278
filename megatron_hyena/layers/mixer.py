"""What every sign of the pattern stands for: a module that mixes positions."""

from __future__ import annotations

from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.provider import Provider


class Mixer(nn.Module):
    """Base of all mixers: `Mixer(config, provider)`, causal, [L, B, h] -> [L, B, h]."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        self.provider = provider

    def forward(self, x_LBH: Tensor) -> Tensor:
        """x [L, B, h] -> [L, B, h], this rank's slice of L under sequence parallelism."""
        raise NotImplementedError

    @staticmethod
    def mixing_flops(config: HyenaGLTConfig, length: int) -> float:
        """Forward FLOPs per position beyond the products with weight matrices."""
        raise NotImplementedError

    @staticmethod
    def stored_rows(config: HyenaGLTConfig) -> tuple[float, float]:
        """What backward needs of this rank's channels: numbers per channel and position.

        Returns:
            (numbers kept in fp32 in every precision, numbers kept as the matrix products' dtype).
        """
        raise NotImplementedError
