"""Drawing the next letter: temperature, then top-k, then top-p, then one number of the row's own.

Everything is in fp64, and a row's numbers are drawn from its seed and its name alone, so neither
the other rows of a batch nor their number change what it draws. K letters, B rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_hyena.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How letters are drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest letter (the first of equal ones).
        top_k: only the k likeliest letters; 0 for all.
        top_p: only the likeliest letters until their probabilities reach p (Holtzman et al.,
            arXiv:1904.09751); 1 for all.
        seed: of all draws.

    Raises:
        UserError: a number out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature {self.temperature} must be 0 (greedy) or more")
        if self.top_k < 0:
            raise UserError(f"top-k {self.top_k} must be 0 (all letters) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p {self.top_p} must be above 0 and at most 1 (all letters)")

    def numbers(self, name: str, length: int) -> Tensor:
        """Uniform numbers in [0, 1) for the letters of the sequence `name`, fp64 [length]."""
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.rand(length, generator=generator, dtype=torch.float64)

    def probabilities(self, logits_BK: Tensor) -> Tensor:
        """What letters are drawn with, fp64 [B, K]; a logit of -inf is a letter ruled out."""
        wide = logits_BK.double()
        if self.temperature == 0:
            chosen = torch.zeros_like(wide)
            return chosen.scatter_(1, wide.argmax(1, keepdim=True), 1.0)
        p = torch.softmax(wide / self.temperature, dim=1)
        if not self.top_k and self.top_p == 1:
            return p
        sorted_p, order = p.sort(dim=1, descending=True, stable=True)
        if self.top_k:
            sorted_p[:, self.top_k :] = 0.0
            sorted_p /= sorted_p.sum(1, keepdim=True)
        before = sorted_p.cumsum(1) - sorted_p
        sorted_p[before >= self.top_p] = 0.0
        p = torch.zeros_like(p).scatter_(1, order, sorted_p)
        return p / p.sum(1, keepdim=True)

    def draw(self, logits_BK: Tensor, number_B: Tensor) -> Tensor:
        """Letters int64 [B], by the inverse of the cumulative probabilities at `number`."""
        p = self.probabilities(logits_BK)
        reached = p.cumsum(1)
        place = (reached <= number_B[:, None] * reached[:, -1:]).sum(1)
        # Rounding may leave a number behind the last letter that has a probability.
        last = p.shape[1] - 1 - (p > 0).flip(1).int().argmax(1)
        return torch.minimum(place, last)
