"""Next-byte logits of sequences that others extend, such as `generate` of transformers.

They come whole, and each time a byte longer. What was read of them is remembered: rows that go on
by one byte, in any order and any number of times (beams), take one step; others are read anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.errors import UserError
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

    def logits(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Of the byte behind ids [B, L], int64: [B, V]; no gradient passes.

        mask_BL: 0 at padding in front of a row, which is not read; None where there is none.

        Raises:
            UserError: padding elsewhere, and see `Decoder`.
        """
        if mask_BL is not None and bool((mask_BL.diff(dim=1) < 0).any()):
            raise UserError(
                "shorter prompts are padded at their end, where the next byte belongs; pad them in "
                "front (tokenizer.padding_side = 'left')"
            )
        rows = self._rows(ids_BL[:, :-1])
        if rows is None or self.decoder is None:
            self.decoder = self._read(ids_BL, mask_BL)
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

    def _read(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Decoder:
        """With room for as much again: reading costs as much as all that came before it."""
        length, longest = ids_BL.shape[1], self.model.longest
        check_length(length, longest)
        self.left = max(ROOM, length)
        if longest is not None:
            self.left = min(self.left, longest - length)
        kept_BL = torch.ones_like(ids_BL) if mask_BL is None else mask_BL
        rows = [ids_L[kept_L != 0] for ids_L, kept_L in zip(ids_BL, kept_BL, strict=True)]
        return Decoder.read(self.model, rows, self.left)
