"""Filters that start as matched filters of motifs.

A tap multiplies one number per channel and position, while a motif is about which of four bases
stands where: so a pattern takes four neighbouring channels, one for each of A, C, G, T, and channel
4 q + b gets the weights of base b. If these channels carry the bases (1 where the byte is that
base, else 0), the sum of the four filters' outputs is the pattern's score, as of a position weight
matrix, at its last letter. A layer's channels are learned mixtures of the bytes before, so this
holds from the start for no layer: the taps give the *shape* of a motif, and training decides what
the four channels carry. The sum is the output projection's to take.

Channels are numbered over the whole layer, so the filters do not depend on the tensor cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_hyena.config.motifs import BASES, IUPAC, motif_bank
from megatron_hyena.layers.parameter import Init


def position_weights(pattern: str) -> Tensor:
    """[4, m]: share of each base A, C, G, T at each letter, less the mean share of 1/4."""
    rows = [[(base in IUPAC[x]) / len(IUPAC[x]) for x in pattern] for base in BASES]
    return torch.tensor(rows) - 1 / len(BASES)


def pattern_taps(pattern: str, count: int) -> Tensor:
    """Taps [4, count] of one pattern of m letters, lag 0 first; their squares sum to 1.

    Lag k meets letter m - 1 - k. The pattern is repeated as often as it fits, each earlier copy
    with half the weight of the one behind it, so that no long filter rings; the rest is 0.
    """
    weights = position_weights(pattern).flip(1)
    copies = count // len(pattern)
    taps = torch.zeros(len(BASES), count)
    halves = torch.repeat_interleave(0.5 ** torch.arange(copies), len(pattern))
    taps[:, : len(halves)] = weights.repeat(1, copies) * halves
    return taps / taps.norm()


def motif_filters(motifs: Sequence[str]) -> Init:
    """Fills [D, K]: the bank's patterns in turn, each on four channels, until none is left."""

    def fill(full_DK: Tensor, generator: torch.Generator) -> None:
        bank = [pattern_taps(pattern, full_DK.shape[1]) for pattern in motif_bank(motifs)]
        for group, rows in enumerate(full_DK.split(len(BASES))):
            rows.copy_(bank[group % len(bank)][: len(rows)])

    return fill
