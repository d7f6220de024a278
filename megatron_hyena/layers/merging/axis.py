"""What merging knows of the positions of an axis: bytes, or the slots of an outer stage.

L positions of this rank's slice of the residual stream, B rows; like the stream itself, tensors are
sequence-first [L, B].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_hyena.layers.provider import Context
from megatron_hyena.layers.span import Span
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.merging import Chunks


@dataclass(frozen=True, eq=False)
class Axis:
    """Positions of one rank's slice.

    Attributes:
        place_LB: byte of its document that the position stands for, int64; -1 for an empty slot.
        sparse: whether positions may be empty.
        counted_LB: whether it counts in rates (neither padding nor empty), bool.
        router_LBR: features for the router that come from bytes alone; None: it sees the stream.
        complexity_LB: complexity of the sequence before the position, in [0, 1]; None unless it
            comes from bytes alone.
        tracks: numbers beside the bytes, each [L, B]; those of a slot are its opening byte's.
        hidden_LB: whether it stands for a byte that is hidden from the model (MASK), bool; None in
            causal models, which hide none.
        protected_LB: whether it must open a chunk, bool: hidden bytes and the byte behind each, so
            that a hidden byte has a chunk of its own. None in causal models.
    """

    place_LB: Tensor
    counted_LB: Tensor
    sparse: bool = True
    router_LBR: Tensor | None = None
    complexity_LB: Tensor | None = None
    tracks: Mapping[str, Tensor] = field(default_factory=dict)
    hidden_LB: Tensor | None = None
    protected_LB: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """Positions that are not empty, bool [L, B]."""
        return self.place_LB >= 0

    @property
    def begins(self) -> Tensor:
        """First positions of documents, bool [L, B]."""
        return self.place_LB == 0

    @property
    def unsmoothed(self) -> Tensor:
        """Chunks that take nothing from the chunk before: of documents' starts and hidden bytes."""
        return self.begins if self.hidden_LB is None else self.begins | self.hidden_LB

    def mask(self, x_LBH: Tensor) -> Tensor:
        """Zero x [L, B, h] at empty positions."""
        return x_LBH * self.present[..., None].to(x_LBH.dtype) if self.sparse else x_LBH

    def merged(self, chunks: Chunks) -> Axis:
        """The axis of the chunks' slots."""
        features, complexity = self.router_LBR, self.complexity_LB
        hidden, protected = self.hidden_LB, self.protected_LB
        return Axis(
            place_LB=chunks.at_openings(self.place_LB, -1),
            counted_LB=chunks.at_openings(self.counted_LB, False),
            router_LBR=None if features is None else chunks.openings(features),
            complexity_LB=None if complexity is None else chunks.at_openings(complexity, 0.0),
            tracks={n: chunks.at_openings(t, neutral(t)) for n, t in self.tracks.items()},
            hidden_LB=None if hidden is None else chunks.at_openings(hidden, False),
            protected_LB=None if protected is None else chunks.at_openings(protected, False),
        )

    def span(
        self, stream: Context, held: slice, whole: Documents | None, read: Collection[str] = ()
    ) -> Span:
        """The span of the slots `held` for mixers, which hold whole stretches.

        `whole` are documents, `read` names of tracks. Every rank learns all places and all of
        these tracks: 4 bytes per slot and row.
        """

        def gathered(values_LB: Tensor) -> Tensor:
            return stream.whole(values_LB.contiguous(), dim=0).t().contiguous()

        tracks = {n: gathered(self.tracks[n])[:, held] for n in read if n in self.tracks}
        own = None if whole is None else whole.stretch(held.start, held.stop)
        places = gathered(self.place_LB.int())
        return Span(held.start, held.stop - held.start, whole, own, tracks, places)


def neutral(track: Tensor) -> float | int:
    """What a track says of an empty slot: nothing."""
    return float("nan") if track.is_floating_point() else 0


def slot_documents(whole: Documents, window: int, slots: int) -> Documents:
    """Documents of the whole axis of slots, from those of the axis below it.

    Documents begin at multiples of `window` there, so at multiples of `slots` here.
    """
    first = whole.position_BL[:, ::window] // window * slots
    positions = first[..., None] + torch.arange(slots, device=first.device)
    return Documents(positions.flatten(1))
