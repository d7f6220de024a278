"""The ranks that share a sequence: halo, whole, carry and switch, each exact in both directions.

A transfer starts in one autograd node and ends in another. Autograd runs the nodes of a graph from
the last made to the first, so the backward of what was computed between the two hides the way back
as it hid the way there. What is sent and received is `parallel.transfers`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_hyena.layers.provider import Pending, Step
from megatron_hyena.parallel.traffic import Traffic
from megatron_hyena.parallel.transfers import Gather, Halo, Ranks, Switch, Transfer


class ContextRanks:
    """A `layers.provider.Context` on a process group.

    Args:
        group: the ranks that share each sequence, in the order of their stretches.
        traffic: where bytes are counted, as those of layers of `kind`.
        backwards: the last rank of the group holds the first stretch.
    """

    def __init__(
        self, group: dist.ProcessGroup, traffic: Traffic, kind: str, backwards: bool = False
    ) -> None:
        self.ranks = Ranks(group, traffic, kind, backwards)
        self.rank, self.size = self.ranks.rank, self.ranks.size
        self.alone = self.size == 1

    def halo(self, x: Tensor, width: int, dim: int = -1) -> Pending:
        """See `Context.halo`."""
        return _start(x, Halo(self.ranks, width, dim))

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """See `Context.whole`."""
        return _start(x, Gather(self.ranks)).wait().movedim(0, dim).flatten(dim, dim + 1)

    def carry(self, end: Tensor, step: Step) -> Pending:
        """See `Context.carry`: one all-gather, folded by every rank for itself."""
        return _Folded(_start(end, Gather(self.ranks)), step, self.rank)

    def switch(self, x: Tensor, cut: int, join: int) -> Tensor:
        """See `Context.switch`."""
        return _start(x, Switch(self.ranks, cut, join)).wait()

    def sum(self, x: Tensor) -> Tensor:
        """See `Context.sum`."""
        total: Tensor = _Sum.apply(x, self.ranks.group)
        return total

    def reversed(self) -> ContextRanks:
        """See `Context.reversed`."""
        ranks = self.ranks
        return ContextRanks(ranks.group, ranks.traffic, ranks.kind, not ranks.backwards)


def _start(x: Tensor, transfer: Transfer) -> Pending:
    return _Started(_Start.apply(x, transfer), transfer)


class _Started:
    def __init__(self, token: Tensor, transfer: Transfer) -> None:
        self.token, self.transfer = token, transfer

    def wait(self) -> Tensor:
        arrived: Tensor = _Wait.apply(self.token, self.transfer)
        return arrived


class _Folded:
    """What `count` ranks hand on, once the ends of all are here."""

    def __init__(self, ends: Pending, step: Step, count: int) -> None:
        self.ends, self.step, self.count = ends, step, count

    def wait(self) -> Tensor:
        ends = self.ends.wait()
        carry = ends[0] * 0.0  # not zeros: the backward of the exchange needs all ranks
        for q in range(self.count):
            carry = self.step(carry, ends[q], q)
        return carry


class _Start(torch.autograd.Function):
    """x -> a token that ties the end of the transfer to its start in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transfer: Transfer) -> Tensor:
        ctx.transfer = transfer
        transfer.send(x)
        return x.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.transfer.receive_back(), None


class _Wait(torch.autograd.Function):
    """The token -> what arrived."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, transfer: Transfer) -> Tensor:
        ctx.transfer = transfer
        return transfer.receive()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.transfer.send_back(grads[0])
        return grads[0].new_zeros(()), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
