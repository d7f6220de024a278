"""What every sign of the pattern stands for: a module that mixes positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.provider import Provider
from megatron_hyena.layers.span import Span


@dataclass(frozen=True)
class Message:
    """One exchange between the ranks that share a sequence, in numbers per batch row.

    Attributes:
        kind: `halo`, `gather` or `all_to_all`, as in `layers.provider.Context`.
        numbers: over all channels of the layer; per position (halo, all_to_all) or in all
            (gather with `width` 0: a state).
        width: positions fetched by a halo; for a gather, 1 if `numbers` are per position held.
        wide: fp32 in every precision; otherwise as the matrix products.
        backwards: a halo from the ranks behind instead of those before.
    """

    kind: Literal["halo", "gather", "all_to_all"]
    numbers: int
    width: int = 0
    wide: bool = True
    backwards: bool = False


class Mixer(nn.Module):
    """Base of all mixers: `Mixer(config, provider)`, causal, [L, B, h] -> [L, B, h].

    Attributes:
        parts: mixers that it is made of, each of which enters and leaves the split of channels.
        tracks: names of the tracks beside the bytes that it reads.
    """

    parts: ClassVar[int] = 1
    tracks: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__()
        self.provider = provider

    def forward(self, x_LBH: Tensor, span: Span | None = None) -> Tensor:
        """x [L, B, h] -> [L, B, h], this rank's slice of its span under sequence parallelism.

        Without `span`, x is whole sequences, one document each.
        """
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

    @staticmethod
    def messages(config: HyenaGLTConfig, exchange: str) -> list[Message]:
        """What a forward pass exchanges with the other ranks of a sequence by `exchange`.

        The backward pass sends the same the other way.
        """
        raise NotImplementedError
