"""What the routers of merged stages know of the bytes alone, one byte at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.generation.carried import Carried
from megatron_hyena.layers.merging.kmers import SPAN, STEP, kmer_complexity
from megatron_hyena.layers.merging.trunk import REACH, ByteTrunk
from megatron_hyena.model.byte_axis import HISTORY
from megatron_hyena.model.hyena_glt import HyenaGLT


class ByteFeatures(Carried):
    """Features of `model.router_input=trunk` and complexity of `model.complexity=kmer`.

    Carries the last `HISTORY` bytes, if either is asked for.

    Args:
        trunk: of the model, or None.
        kmers: whether complexity is asked for.
        rows: B.
        device: of the model.
    """

    names = ("recent", "complexity")

    def __init__(
        self, trunk: ByteTrunk | None, kmers: bool, rows: int, device: torch.device
    ) -> None:
        self.trunk, self.kmers = trunk, kmers
        self.used = trunk is not None or kmers
        self.recent = torch.zeros(rows, HISTORY if self.used else 0, dtype=torch.int64).to(device)
        self.complexity = torch.ones(rows, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, model: HyenaGLT, rows: int) -> ByteFeatures:
        """Of a model."""
        axis, device = model.byte_axis, model.embedding.weight.device
        return cls(axis.trunk, axis.kmers, rows, device)

    def read(self, ids_BL: Tensor) -> None:
        """The first bytes of all rows, whole windows of them."""
        self.recent = (
            torch.cat([self.recent, ids_BL], 1)[:, -HISTORY:] if self.used else ids_BL[:, :0]
        )

    def next(self, ids_B: Tensor, place_B: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Features [B, R] and complexity [B] of the next byte, whose place is `place_B`."""
        if not self.used:
            return None, None
        if self.kmers:
            self._measure(place_B)
        ids = torch.cat([self.recent, ids_B[:, None]], 1)
        self.recent = ids[:, 1:]
        features = None
        if self.trunk is not None:
            place = place_B[:, None] + torch.arange(-HISTORY, 1, device=ids.device)
            features = self.trunk(ids, place, HISTORY, HISTORY + 1)[0]
        return features, self.complexity if self.kmers else None

    def _measure(self, place_B: Tensor) -> None:
        """Where a block of `STEP` begins, its complexity: of the bytes before."""
        begins = place_B % STEP == 0
        if not bool(begins.any()):
            return
        ids = torch.cat([self.recent, self.recent.new_zeros(len(self.recent), STEP)], 1)
        place = place_B[:, None] + torch.arange(-HISTORY, STEP, device=ids.device)
        found = kmer_complexity(ids, place, HISTORY, HISTORY + STEP)[0]
        self.complexity = torch.where(begins, found, self.complexity)


assert REACH <= HISTORY and SPAN <= HISTORY
