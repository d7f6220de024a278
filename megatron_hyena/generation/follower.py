"""Next-byte logits of sequences that others extend, such as `generate` of transformers.

They come whole, and each time a byte longer. What was read of them is remembered: rows that go on
by one byte, in any order and any number of times (beams), take one step; others are read anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.generation.decoder import Decoder
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.inputs import check_length

ROOM = 256
"""Bytes that may be written, at least, before the filters of `H` and `G` need more room."""


class Follower:
    """Of one model, whose weights stay as they are meanwhile."""

    def __init__(self, model: HyenaGLT) -> None:
        self.model = model
        self.decoder: Decoder | None = None
        self.ids, self.left = torch.empty(0, 0, dtype=torch.int64), 0

    def logits(self, ids_BL: Tensor) -> Tensor:
        """Of the byte behind ids [B, L], int64: [B, V]; no gradient passes.

        Raises:
            UserError: see `Decoder`.
        """
        rows = self._rows(ids_BL[:, :-1])
        if rows is None or self.decoder is None:
            self.decoder = self._read(ids_BL)
        else:
            if not torch.equal(rows, torch.arange(len(self.ids), device=rows.device)):
                self.decoder.select(rows)
            self.decoder.step(ids_BL[:, -1])
            self.left -= 1
        self.ids = ids_BL
        return self.decoder.logits.clone()

    def _rows(self, before_BL: Tensor) -> Tensor | None:
        """Which rows that were read these are, int64 [B]; None where they have to be read."""
        if not self.left or before_BL.shape[1] != self.ids.shape[1]:
            return None
        if torch.equal(before_BL, self.ids):
            return torch.arange(len(self.ids), device=before_BL.device)
        same = (before_BL[:, None] == self.ids).all(dim=2)
        return same.int().argmax(dim=1) if bool(same.any(dim=1).all()) else None

    def _read(self, ids_BL: Tensor) -> Decoder:
        """With room for as much again: reading costs as much as all that came before it."""
        length, longest = ids_BL.shape[1], self.model.longest
        check_length(length, longest)
        self.left = max(ROOM, length)
        if longest is not None:
            self.left = min(self.left, longest - length)
        return Decoder.read(self.model, list(ids_BL), self.left)
