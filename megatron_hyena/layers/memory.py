"""Sequences that arrive piece by piece: what was before a piece is remembered, not held elsewhere.

What ranks that share a sequence hand to each other is what one piece hands to the next. So a
`Memory` stands where the ranks' context stands, and layers run on pieces as they run on ranks:

    halo    S M W, featurizers, merging    the last few positions
    carry   L, smoothing                   one state, whatever the length
    whole   A H, places of slots           everything until now: it grows with the sequence

The state is a list of tensors in the order of the calls, which is the same in every pass. None is
written in place, so a copy of the list is a copy of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.layers.provider import Arrived, Context, Pending, Provider, Step

State = tuple[Tensor, ...]
"""What is remembered of all pieces until now; empty before the first."""


class Memory:
    """A `layers.provider.Context` whose other stretches are in the past."""

    rank = 0
    size = 1
    alone = False

    def __init__(self) -> None:
        self.recall(())

    def recall(self, state: State) -> None:
        """Before a piece: what was before it."""
        self._old: Sequence[Tensor] = state
        self._new: list[Tensor] = []

    @property
    def state(self) -> State:
        """Behind a piece."""
        return tuple(self._new)

    def _before(self, nothing: Callable[[], Tensor]) -> Tensor:
        """What the call at hand remembered last time."""
        return self._old[len(self._new)] if self._old else nothing()

    def halo(self, x: Tensor, width: int, dim: int = -1) -> Pending:
        """See `Context.halo`."""
        dim, length = dim % x.dim(), x.shape[dim]
        shape = (*x.shape[:dim], width, *x.shape[dim + 1 :])
        before = self._before(lambda: x.new_zeros(shape))
        tail = x.narrow(dim, max(0, length - width), min(length, width))
        joined = torch.cat([before, tail], dim)
        self._new.append(joined.narrow(dim, joined.shape[dim] - width, width).clone())
        return Arrived(before)

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """See `Context.whole`: until now."""
        joined = torch.cat([self._before(lambda: x.narrow(dim, 0, 0)), x], dim)
        self._new.append(joined)
        return joined

    def carry(self, end: Tensor, step: Step) -> Pending:
        """See `Context.carry`."""
        before = self._before(lambda: torch.zeros_like(end))
        self._new.append(step(before, end, 0))
        return Arrived(before)

    def switch(self, x: Tensor, cut: int, join: int) -> Tensor:
        """No layer of a `Remembering` provider asks for it."""
        raise TypeError("pieces in time hold all channels; there is nothing to switch")

    def sum(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def reversed(self) -> Context:
        """No causal layer asks for it."""
        raise TypeError("what is still to come cannot be remembered")


class Remembering:
    """A `layers.provider.Provider` of pieces in time, on the ranks of another.

    Args:
        provider: whose ranks share channels, but no sequence.
        memory: of all layers together.
        kind: of the layer, see `of_layer`.
    """

    def __init__(self, provider: Provider, memory: Memory, kind: str = "") -> None:
        self.provider = provider
        self.rank, self.size = provider.rank, provider.size
        self.memory = memory
        self.context: Context = memory
        self.stream: Context = memory
        known = SIGNS[kind].exchanges if kind in SIGNS else ()
        short = [exchange for exchange in known if exchange in ("halo", "state")]
        self.exchange = short[0] if short else "all_gather"
        self.sequence_multiple = 1

    def of_layer(self, kind: str) -> Remembering:
        """See `Provider.of_layer`."""
        return Remembering(self.provider.of_layer(kind), self.memory, kind)

    def enter(self, x_LBH: Tensor) -> Tensor:
        """See `Provider.enter`."""
        return self.provider.enter(x_LBH)

    def leave(self, y_LBH: Tensor) -> Tensor:
        """See `Provider.leave`."""
        return self.provider.leave(y_LBH)

    def copy(self, x: Tensor) -> Tensor:
        """See `Provider.copy`."""
        return self.provider.copy(x)

    def cross_entropy(self, logits_LBV: Tensor, targets_LB: Tensor) -> Tensor:
        """See `Provider.cross_entropy`."""
        return self.provider.cross_entropy(logits_LBV, targets_LB)

    def gather_vocabulary(self, logits_LBV: Tensor) -> Tensor:
        """See `Provider.gather_vocabulary`."""
        return self.provider.gather_vocabulary(logits_LBV)
