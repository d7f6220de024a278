"""What one position at a time has in common in every layer: state of rows that can be recombined.

Tensors of state are batch-first [B, ...] and, within a row, of any row's own length; so rows of
unlike length go side by side, leave, and are joined. B rows, D channels, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Now:
    """The byte that is being read, for all layers.

    Attributes:
        active_B: rows of which the axis at hand has a position now, bool; None for all.
        cos, sin: of the byte's place for the halves of each head [B, 1, 1, head_dim], the sine of
            the first half negative; None if no layer attends.
        first_B: rows whose first byte it is, bool; None if there are no merged stages.
        features_BR, complexity_B: what routers know of the bytes alone; see `layers.merging.axis`.
    """

    active_B: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None
    first_B: Tensor | None = None
    features_BR: Tensor | None = None
    complexity_B: Tensor | None = None


@dataclass
class Past:
    """What a `Stream` remembers, in the order in which layers take it.

    Attributes:
        state: the tensors still to be taken.
        positions: of the axis at hand.
        present: which of them are not empty, bool [B, positions]; None for all.
    """

    state: Iterator[Tensor]
    positions: int
    present: Tensor | None = None

    def take(self) -> Tensor:
        """The next tensor."""
        return next(self.state)


class Carried:
    """Base of whatever carries state from byte to byte.

    Attributes:
        names: attributes that hold state, [B, ...] each.
    """

    names: tuple[str, ...] = ()

    def parts(self) -> list[Carried]:
        """What else carries state for this one."""
        return []

    def settle(self, rows: int) -> None:
        """Make, for so many rows, what steps write to and views of it and of the state.

        Making a view takes as long as adding two vectors, so steps make as few as they can. To be
        called before the first step and whenever rows have been chosen or joined.
        """
        for part in self.parts():
            part.settle(rows)

    def select(self, rows: Tensor) -> None:
        """Keep some rows, int64 indices, in that order; one may be named more than once."""
        for name in self.names:
            setattr(self, name, getattr(self, name)[rows])
        for part in self.parts():
            part.select(rows)

    def join(self, others: Sequence[Carried]) -> None:
        """Append the rows of `others`, which are of the same layer."""
        for name in self.names:
            tensors = [getattr(one, name) for one in (self, *others)]
            setattr(self, name, torch.cat(tensors))
        for number, part in enumerate(self.parts()):
            part.join([other.parts()[number] for other in others])

    @property
    def nbytes(self) -> int:
        """Bytes of state."""
        own = sum(int(getattr(self, name).nbytes) for name in self.names)
        return own + sum(part.nbytes for part in self.parts())


class Step(Carried):
    """Base of all that steps: mixers, blocks, stages."""

    def idle(self, active_B: Tensor) -> None:
        """An empty slot passes in the active rows, bool [B]."""
        raise NotImplementedError

    def take(self, past: Past) -> None:
        """Begin behind what a stream remembers."""
        raise NotImplementedError


class MixerStep(Step):
    """Base of the mixers."""

    def add(self, x_BH: Tensor, stream_BH: Tensor, now: Now) -> None:
        """Add to the residual stream what is mixed from x; undefined in rows that are not active.

        Args:
            x_BH: the position at hand, normed.
            stream_BH: written in place.
        """
        raise NotImplementedError


def keep(active_B: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    """`new` [B, ...] in the active rows, `old` in the others."""
    if active_B is None:
        return new
    return torch.where(active_B.view(-1, *[1] * (new.dim() - 1)), new, old)
