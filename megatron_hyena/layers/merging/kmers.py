"""Complexity of sequence without parameters: the entropy of the 3-mers of the last 64 bytes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SPAN, STEP, K = 64, 16, 3
"""Bytes looked at; positions that share one value; letters of a word."""
LETTERS = "ACGTU"
CODES = 5
"""A, C, G, T (or U), and anything else; lower case as upper."""


def kmer_complexity(ids_BL: Tensor, position_BL: Tensor, start: int, stop: int) -> Tensor:
    """Entropy over its largest possible value, of the `SPAN` bytes before each block of `STEP`.

    In [0, 1]; 1 where the document holds fewer bytes before the block. fp64, from integer counts,
    so it is the same number on whatever rank.

    Args:
        ids_BL: bytes of whole sequences, int64; L, `start` and `stop` are multiples of `STEP`.
        position_BL: positions in their documents.
    Returns:
        [stop - start, B].
    """
    table = torch.full((512,), CODES - 1, dtype=torch.int64, device=ids_BL.device)
    for letter in LETTERS:
        for case in (letter, letter.lower()):
            table[ord(case)] = min(LETTERS.index(letter), 3)
    codes = F.pad(table[ids_BL[:, max(0, start - SPAN) : stop]], (max(0, SPAN - start), 0))
    words = sum(codes[:, i : codes.shape[1] - K + 1 + i] * CODES ** (K - 1 - i) for i in range(K))
    assert isinstance(words, Tensor)
    blocks = words.unfold(1, SPAN - K + 1, STEP)[:, : (stop - start) // STEP]  # [B, blocks, words]
    counts = torch.zeros(*blocks.shape[:2], CODES**K, dtype=torch.int64, device=ids_BL.device)
    counts.scatter_add_(2, blocks, torch.ones_like(blocks))
    share = counts.double() / (SPAN - K + 1)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(2) / math.log(SPAN - K + 1)
    known = position_BL[:, start:stop:STEP] >= SPAN
    value = torch.where(known, entropy, 1.0)
    return value.t().repeat_interleave(STEP, dim=0)
