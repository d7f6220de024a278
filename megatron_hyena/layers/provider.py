"""What a layer asks of the layout it runs in.

Layers are the maths; the cut is a provider. A layer holds `1 / size` of its channels, enters the
region where channels are split with `enter`, and leaves it with `leave`; between the two it works
on its own channels over the whole sequence. The dense provider is plain torch and one rank; the
Megatron provider (`parallel.provider`) does the same with Megatron-core's collectives.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Provider(Protocol):
    """One rank's view of the tensor-parallel group.

    Attributes:
        rank, size: place in the group of ranks that share each layer's channels.
    """

    rank: int
    size: int

    def enter(self, x_LBH: Tensor) -> Tensor:
        """Before channels are split: the whole sequence, equal on every rank.

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
