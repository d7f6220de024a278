"""Ranks that share a sequence, as threads of this process with plain torch between them.

An independent `layers.provider.Context`: each exchange lays every rank's tensor on one table and
takes from it what is due, so the whole computation is one autograd graph, without a process group.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from megatron_hyena.layers.provider import Arrived, DenseProvider, Pending, Step

Result = TypeVar("Result")


class Table:
    """Where `size` threads meet; a thread that fails sends the others home."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, Barrier(size, timeout=60)
        self.laid: list[Tensor] = [torch.empty(0)] * size

    def meet(self, rank: int, x: Tensor) -> list[Tensor]:
        """Every rank's x, in order."""
        self.laid[rank] = x
        self.barrier.wait()
        found = list(self.laid)
        self.barrier.wait()
        return found


class ThreadContext:
    """See `layers.provider.Context`."""

    def __init__(self, table: Table, rank: int, backwards: bool = False) -> None:
        self.table, self.size, self.backwards = table, table.size, backwards
        self.seat, self.rank = rank, table.size - 1 - rank if backwards else rank
        self.alone = table.size == 1

    def reversed(self) -> ThreadContext:
        """Counted from the other end."""
        return ThreadContext(self.table, self.seat, not self.backwards)

    def meet(self, x: Tensor) -> list[Tensor]:
        """Every rank's x, in the order of the ranks."""
        found = self.table.meet(self.seat, x)
        return found[::-1] if self.backwards else found

    def halo(self, x: Tensor, width: int, dim: int = -1) -> Pending:
        """The `width` positions before, zeros before the start."""
        whole = torch.cat(self.meet(x), dim=dim).movedim(dim, -1)
        nothing = whole.new_zeros(*whole.shape[:-1], width)
        end = width + self.rank * x.shape[dim]
        padded = torch.cat([nothing, whole], dim=-1)
        return Arrived(padded[..., end - width : end].movedim(-1, dim))

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """Every rank's, side by side."""
        return torch.cat(self.meet(x), dim=dim)

    def carry(self, end: Tensor, step: Step) -> Pending:
        """Of the ranks before, one after the other."""
        ends = self.meet(end)
        carry = torch.zeros_like(end)
        for q in range(self.rank):
            carry = step(carry, ends[q], q)
        return Arrived(carry)

    def switch(self, x: Tensor, cut: int, join: int) -> Tensor:
        """This rank's part of every x, joined."""
        parts = [y.chunk(self.size, dim=cut)[self.rank] for y in self.meet(x)]
        return torch.cat(parts, dim=join)

    def sum(self, x: Tensor) -> Tensor:
        """Of all ranks."""
        return torch.stack(self.meet(x)).sum(0)


class ThreadProvider(DenseProvider):
    """One tensor rank, and one of the threads that share the sequence."""

    def __init__(self, context: ThreadContext, exchange: str) -> None:
        self.context, self.exchange = context, exchange
        self.sequence_multiple = context.size


def on_threads(size: int, work: Callable[[ThreadContext], Result]) -> list[Result]:
    """`work` on each of `size` ranks; their results, in order."""
    table = Table(size)

    def one(rank: int) -> Result:
        try:
            return work(ThreadContext(table, rank))
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return [future.result() for future in [pool.submit(one, rank) for rank in range(size)]]
