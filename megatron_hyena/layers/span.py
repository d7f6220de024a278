"""Which positions of the sequence a rank holds, and which documents they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_hyena.ops.documents import Documents


@dataclass(frozen=True, eq=False)
class Span:
    """A rank's stretch of a (padded) sequence: all of it, unless ranks share the sequence.

    Attributes:
        start: first position held.
        length: positions held, l.
        whole: documents of the whole sequence; None for one per row.
        own: the same, of the positions held.
        tracks: numbers beside the bytes, by name, each [B, l] of the positions held.
        places: on a merged axis, where in its document each position of the whole axis stands, in
            bytes, int [B, whole]; -1 for an empty slot. None: no position is empty, and places
            are positions.
    """

    start: int
    length: int
    whole: Documents | None = None
    own: Documents | None = None
    tracks: Mapping[str, Tensor] = field(default_factory=dict)
    places: Tensor | None = None
    _turned: list[Span] = field(default_factory=list, repr=False)

    @classmethod
    def alone(cls, length: int) -> Span:
        """A whole sequence on one rank, one document per row."""
        return cls(0, length)

    @classmethod
    def of_rank(
        cls,
        rank: int,
        length: int,
        whole: Documents | None,
        tracks: Mapping[str, Tensor] | None = None,
    ) -> Span:
        """The `rank`-th stretch of `length` positions."""
        start = rank * length
        own = None if whole is None else whole.stretch(start, start + length)
        return cls(start, length, whole, own, tracks or {})

    def reversed(self, size: int) -> Span:
        """The same positions where the sequence is read from right to left, on `size` ranks.

        Documents count from their ends; tracks and places stand at their positions.
        """
        if not self._turned:
            start = (size - 1) * self.length - self.start
            whole = None if self.whole is None else self.whole.reversed()
            own = None if whole is None else whole.stretch(start, start + self.length)
            tracks = {name: track.flip(1) for name, track in self.tracks.items()}
            places = None if self.places is None else self.places.flip(1)
            self._turned.append(Span(start, self.length, whole, own, tracks, places))
        return self._turned[0]

    def present(self, history: int = 0) -> Tensor | None:
        """Which positions held, and `history` before them, are not empty: bool [B, history + l].

        None if none is empty.
        """
        if self.places is None:
            return None
        return self.places[:, self.start - history : self.start + self.length] >= 0

    def mask_empty(self, x_LBH: Tensor) -> Tensor:
        """Zero the empty positions of x [l, B, h]."""
        present = self.present()
        return x_LBH if present is None else x_LBH * present.t()[..., None].to(x_LBH.dtype)

    def mask_history(self, history: Tensor) -> Tensor:
        """Zero what belongs to another document in history [..., B, h], the nearest last."""
        if self.own is None:
            return history
        distance = torch.arange(history.shape[-1], 0, -1, device=history.device)
        return history.masked_fill(self.own.position_BL[:, :1] < distance, 0.0)

    def mask_outputs(self, spilled: Tensor) -> Tensor:
        """Zero what history spills [..., B, w] over the first w positions beyond its document."""
        if self.own is None:
            return spilled
        first = self.own.position_BL[:, : spilled.shape[-1]]
        begun_here = first <= torch.arange(first.shape[1], device=first.device)
        return spilled.masked_fill(begun_here, 0.0)


def positions(span: Span, device: torch.device) -> Tensor:
    """Bytes from the start of each document, for rotary angles: int [L] or [B, 1, L] for heads."""
    if span.places is not None:
        return span.places[:, None, span.start : span.start + span.length]
    if span.own is not None:
        return span.own.position_BL[:, None]
    return torch.arange(span.start, span.start + span.length, device=device)
