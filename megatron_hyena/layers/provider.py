"""What a layer asks of the layout it runs in.

Layers are the maths; the cut is a provider. A layer holds `1 / size` of its channels, enters the
region where channels are split with `enter`, and leaves it with `leave`; between the two it works
on its own channels over its rank's span of the sequence, and reaches other ranks' spans through
`context`. The dense provider is plain torch and one rank; the Megatron provider
(`parallel.provider`) does the same with Megatron-core's collectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

Step = Callable[[Tensor, Tensor, int], Tensor]
"""(what is carried into stretch q, what q leaves behind by itself, q) -> what it hands on."""


class Pending(Protocol):
    """Something on its way from other ranks."""

    def wait(self) -> Tensor:
        """The tensor; blocks until it is there. Every rank must call it, and use the result."""
        ...


class Context(Protocol):
    """What is held elsewhere of the sequence of which a stretch is at hand.

    Between ranks each holds an equal stretch. All exchanges are differentiable and collective:
    every rank of the group makes the same calls. What starts one returns at once, and so does its
    backward: work in between hides the transfer. In time (`layers.memory`) the stretches before
    this one are remembered.

    Attributes:
        rank, size: place in the group; rank r holds the r-th stretch.
        alone: whether the stretch is the whole sequence.
    """

    rank: int
    size: int
    alone: bool

    def halo(self, x: Tensor, width: int, dim: int = -1) -> Pending:
        """Start to fetch the `width` positions before this rank's first one along `dim`.

        Zeros before the start of the sequence.
        """
        ...

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """The stretches of all ranks (in time: of all until now), joined along `dim` >= 0."""
        ...

    def carry(self, end: Tensor, step: Step) -> Pending:
        """Start to fetch what the stretches before hand on, folded by `step` in order, from zeros.

        `end` is what this stretch leaves behind by itself, of equal shape on all.
        """
        ...

    def switch(self, x: Tensor, cut: int, join: int) -> Tensor:
        """All-to-all: cut dimension `cut` into `size` parts, one for each rank; join along `join`.

        From all channels of a stretch of the sequence to the whole sequence of a share of the
        channels, or back.
        """
        ...

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks; its backward passes the gradient on unchanged."""
        ...

    def reversed(self) -> Context:
        """The same ranks in the opposite order: of sequences read from right to left."""
        ...


class OneRank:
    """The context of a sequence on one rank, which never needs to reach another."""

    rank = 0
    size = 1
    alone = True

    def halo(self, x: Tensor, width: int, dim: int = -1) -> Pending:
        """See `Context.halo`: there is nothing before."""
        shape = list(x.shape)
        shape[dim] = width
        return Arrived(x.new_zeros(shape))

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """Identity."""
        return x

    def carry(self, end: Tensor, step: Step) -> Pending:
        """See `Context.carry`: nothing was before."""
        return Arrived(end * 0.0)

    def switch(self, x: Tensor, cut: int, join: int) -> Tensor:
        """Identity."""
        return x

    def sum(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def reversed(self) -> Context:
        """The same."""
        return self


class Arrived:
    """A `Pending` that waits for nothing."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def wait(self) -> Tensor:
        """At once."""
        return self.x


class Provider(Protocol):
    """One rank's view of the ranks that share the model and the sequence.

    Attributes:
        rank, size: place in the group of ranks that share each layer's channels.
        context: the ranks that share each sequence.
        stream: the ranks that share each sequence of the residual stream: those of `context`, and
            under sequence parallelism the tensor ranks too.
        exchange: how the layer at hand reaches other spans, a name of `layers.exchange`; `local`
            if it need not.
        sequence_multiple: a sequence is padded to a multiple of this.
    """

    rank: int
    size: int
    context: Context
    stream: Context
    exchange: str
    sequence_multiple: int

    def of_layer(self, kind: str) -> Provider:
        """The provider of layers of one kind (a sign of the pattern, or another name)."""
        ...

    def enter(self, x_LBH: Tensor) -> Tensor:
        """Before channels are split: the rank's whole span, equal on every tensor rank.

        Its backward sums the ranks' gradients.
        """
        ...

    def leave(self, y_LBH: Tensor) -> Tensor:
        """After channels are split: the sum of the ranks' partial results."""
        ...

    def copy(self, x: Tensor) -> Tensor:
        """A replicated tensor about to be used by each rank for its own channels.

        Identity; its backward sums the ranks' gradients.
        """
        ...

    def cross_entropy(self, logits_LBV: Tensor, targets_LB: Tensor) -> Tensor:
        """-log softmax(logits)[target] in nats [L, B], fp32 (fp64 for fp64 logits).

        `logits_LBV` holds this rank's slice of the vocabulary.
        """
        ...

    def gather_vocabulary(self, logits_LBV: Tensor) -> Tensor:
        """All ranks' slices of the vocabulary, concatenated. Without gradient."""
        ...


class DenseProvider:
    """One rank holds everything: plain torch."""

    rank = 0
    size = 1
    context: Context = OneRank()
    stream: Context = OneRank()
    exchange = "local"
    sequence_multiple = 1

    def of_layer(self, kind: str) -> Provider:
        """The same for all layers."""
        return self

    def enter(self, x_LBH: Tensor) -> Tensor:
        """Identity."""
        return x_LBH

    def leave(self, y_LBH: Tensor) -> Tensor:
        """Identity."""
        return y_LBH

    def copy(self, x: Tensor) -> Tensor:
        """Identity."""
        return x

    def cross_entropy(self, logits_LBV: Tensor, targets_LB: Tensor) -> Tensor:
        """See `Provider.cross_entropy`."""
        wide = logits_LBV if logits_LBV.element_size() == 8 else logits_LBV.float()
        nll = F.cross_entropy(wide.flatten(0, 1), targets_LB.flatten(), reduction="none")
        return nll.view_as(targets_LB)

    def gather_vocabulary(self, logits_LBV: Tensor) -> Tensor:
        """Identity."""
        return logits_LBV
