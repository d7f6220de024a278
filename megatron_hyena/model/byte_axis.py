"""The bytes as merging sees them: the axis below the outermost stages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.alphabet import mask_id, pad_id
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.kmers import SPAN, STEP, kmer_complexity
from megatron_hyena.layers.merging.trunk import REACH, ByteTrunk
from megatron_hyena.ops.documents import Documents

HISTORY = -(-max(SPAN, REACH) // STEP) * STEP
"""Bytes before a stretch that its axis depends on, or more."""


class ByteAxis(nn.Module):
    """Places, padding, and what routers want to know of the bytes alone.

    Whoever holds a stretch has the bytes before it too, so none of it is exchanged.
    """

    def __init__(self, config: HyenaGLTConfig) -> None:
        super().__init__()
        merges, routed = "(" in config.pattern, config.merger in ("wcc", "hnet")
        by_bytes = merges and routed and config.router_input == "trunk"
        self.trunk = ByteTrunk(config.vocab_size) if by_bytes else None
        self.causal = config.causal
        self.pad, self.mask = pad_id(config), mask_id(config)
        self.kmers = routed and config.adaptive and config.complexity == "kmer"

    def forward(
        self,
        ids_BL: Tensor,
        documents: Documents | None,
        tracks: Mapping[str, Tensor],
        held: slice,
        first: int = 0,
        given: int | None = None,
    ) -> Axis:
        """The axis of the bytes `held` of `ids_BL`, whose tracks and documents are as long.

        At least `HISTORY` bytes stand before those held, or all that there are; `first` is the
        place in the sequence of the first byte of `ids_BL`; those behind its first `given` (None:
        none) were appended by the model.
        """
        start, stop = held.start, held.stop
        if documents is None:
            position = torch.arange(first, first + ids_BL.shape[1], device=ids_BL.device)
            position = position.expand_as(ids_BL)
        else:
            position = documents.position_BL
        features = None
        if self.trunk is not None:
            features = self.trunk(ids_BL, position, start, stop)
        hidden = protected = None
        if self.mask is not None and not self.causal:
            whole = ids_BL == self.mask
            behind = F.pad(whole[:, :-1], (1, 0))
            hidden, protected = (b[:, start:stop].t() for b in (whole, whole | behind))
        return Axis(
            place_LB=position[:, start:stop].t(),
            counted_LB=self._counted(ids_BL, given)[:, start:stop].t(),
            sparse=False,
            router_LBR=features,
            complexity_LB=kmer_complexity(ids_BL, position, start, stop) if self.kmers else None,
            tracks={name: track[:, start:stop].t() for name, track in tracks.items()},
            hidden_LB=hidden,
            protected_LB=protected,
        )

    def _counted(self, ids_BL: Tensor, given: int | None) -> Tensor:
        """Bytes that are no padding, bool [B, L]."""
        if self.pad is not None:
            return ids_BL != self.pad
        place = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return (place < (ids_BL.shape[1] if given is None else given)).expand_as(ids_BL)
