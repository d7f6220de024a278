"""What the ranks that share a sequence send each other: a halo, a gather, a switch, and back.

All are made of two collectives, all-gather and all-to-all with unequal parts, on gloo and NCCL
alike: every rank takes part in each, so none can wait for a message that no one sends. Bytes are
counted as they are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_hyena.parallel.traffic import Direction, Traffic

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """A process group, and where the bytes of layers of `kind` are counted.

    Attributes:
        backwards: the last rank of the group is the first: see `layers.provider.Context.reversed`.
    """

    group: dist.ProcessGroup
    traffic: Traffic
    kind: str
    backwards: bool = False

    @property
    def rank(self) -> int:
        """Place in the order."""
        rank = dist.get_rank(self.group)
        return self.size - 1 - rank if self.backwards else rank

    def ordered(self, of_ranks: Sequence[T]) -> list[T]:
        """One thing for each rank: from our order to the group's, or back."""
        return list(reversed(of_ranks)) if self.backwards else list(of_ranks)

    @property
    def size(self) -> int:
        """Ranks in the group."""
        return dist.get_world_size(self.group)


class Transfer(Protocol):
    """One exchange. The two directions are called in turn, perhaps without the second."""

    def send(self, x: Tensor) -> None:
        """Start to send what others need of x."""
        ...

    def receive(self) -> Tensor:
        """What arrived."""
        ...

    def send_back(self, gradient: Tensor) -> None:
        """Start to send the gradient of what arrived to where it came from."""
        ...

    def receive_back(self) -> Tensor:
        """The gradient of x."""
        ...


class Exchange:
    """What transfers share: one collective in flight, whose bytes are counted."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.work: dist.Work | None = None
        self.arriving = torch.empty(0)
        self.leaving = torch.empty(0)
        self.sizes: list[int] = []

    def all_to_all(self, parts: list[Tensor], sizes: list[int], direction: Direction) -> None:
        """Start to send parts[q] to rank q, and to receive sizes[q] numbers from it."""
        parts, self.sizes = self.ranks.ordered(parts), self.ranks.ordered(sizes)
        self.leaving = torch.cat([part.reshape(-1) for part in parts])
        self.arriving = self.leaving.new_empty(sum(sizes))
        lengths = [part.numel() for part in parts]
        self.work = dist.all_to_all_single(
            self.arriving, self.leaving, self.sizes, lengths, group=self.ranks.group, async_op=True
        )
        others = self.leaving.numel() - lengths[dist.get_rank(self.ranks.group)]
        self.count(others * self.leaving.element_size(), direction)

    def count(self, sent: int, direction: Direction) -> None:
        """Bytes sent by this rank."""
        self.ranks.traffic.add(self.ranks.kind, direction, sent)

    def arrived(self) -> Tensor:
        """What the collective in flight brings, in the order of the ranks."""
        assert self.work is not None
        self.work.wait()
        self.work, buffer = None, self.arriving
        self.arriving = self.leaving = buffer.new_empty(0)
        if self.ranks.backwards and self.sizes:
            buffer = torch.cat(self.ranks.ordered(buffer.split(self.sizes)))
        self.sizes = []
        return buffer


class Halo(Exchange):
    """The `width` positions before the stretch, from as many ranks as hold them.

    Rank r + d needs the last min(l, width - (d - 1) l) positions of rank r.
    """

    def __init__(self, ranks: Ranks, width: int, dim: int) -> None:
        super().__init__(ranks)
        self.width, self.dim = width, dim

    def widths(self, length: int) -> tuple[list[int], list[int]]:
        """Positions sent to each rank, and received from each."""
        rank, size = self.ranks.rank, self.ranks.size

        def between(distance: int) -> int:
            return min(length, max(0, self.width - (distance - 1) * length)) if distance > 0 else 0

        return [between(q - rank) for q in range(size)], [between(rank - q) for q in range(size)]

    def send(self, x: Tensor) -> None:
        x = x.movedim(self.dim, -1)
        self.shape, length = x.shape, x.shape[-1]
        self.sent, self.received = self.widths(length)
        self.rows = x.numel() // length
        parts = [x[..., length - w :] for w in self.sent]
        self.all_to_all(parts, [self.rows * w for w in self.received], "forward")

    def receive(self) -> Tensor:
        parts = self.arrived().split([self.rows * w for w in self.received])
        halo = parts[0].new_zeros(*self.shape[:-1], self.width)
        at = self.width - sum(self.received)
        for part, w in zip(parts, self.received, strict=True):
            halo[..., at : at + w] = part.view(*self.shape[:-1], w)
            at += w
        return halo.movedim(-1, self.dim)

    def send_back(self, gradient: Tensor) -> None:
        gradient = gradient.movedim(self.dim, -1)
        edge = self.width - sum(self.received)
        parts = gradient[..., edge:].split(self.received, dim=-1)
        self.all_to_all(list(parts), [self.rows * w for w in self.sent], "backward")

    def receive_back(self) -> Tensor:
        parts = self.arrived().split([self.rows * w for w in self.sent])
        gradient = parts[0].new_zeros(self.shape)
        for part, w in zip(parts, self.sent, strict=True):
            gradient[..., self.shape[-1] - w :] += part.view(*self.shape[:-1], w)
        return gradient.movedim(-1, self.dim)


class Gather(Exchange):
    """Every rank's x; back, each rank's share of the gradients is sent to it and summed."""

    def send(self, x: Tensor) -> None:
        self.leaving = x.contiguous()
        self.shape = (self.ranks.size, *x.shape)
        self.arriving = x.new_empty(self.shape)
        rows = self.ranks.ordered(self.arriving.unbind(0))
        self.work = dist.all_gather(rows, self.leaving, group=self.ranks.group, async_op=True)
        self.count((self.ranks.size - 1) * x.numel() * x.element_size(), "forward")

    def receive(self) -> Tensor:
        return self.arrived()

    def send_back(self, gradient: Tensor) -> None:
        sizes = [gradient[0].numel()] * self.ranks.size
        self.all_to_all(list(gradient), sizes, "backward")

    def receive_back(self) -> Tensor:
        return self.arrived().view(self.shape).sum(0)


class Switch(Exchange):
    """Parts of dimension `cut` go to their ranks; what comes is joined along `join`."""

    def __init__(self, ranks: Ranks, cut: int, join: int) -> None:
        super().__init__(ranks)
        self.cut, self.join = cut, join

    def start(self, x: Tensor, cut: int, direction: Direction) -> None:
        """Send the parts of `cut`."""
        parts = x.chunk(self.ranks.size, dim=cut)
        self.part = parts[0].shape
        self.all_to_all(list(parts), [parts[0].numel()] * self.ranks.size, direction)

    def joined(self, join: int) -> Tensor:
        """What came, side by side along `join`."""
        parts = self.arrived().view(self.ranks.size, *self.part)
        return torch.cat(parts.unbind(0), dim=join)

    def send(self, x: Tensor) -> None:
        self.start(x, self.cut, "forward")

    def receive(self) -> Tensor:
        return self.joined(self.join)

    def send_back(self, gradient: Tensor) -> None:
        self.start(gradient, self.join, "backward")

    def receive_back(self) -> Tensor:
        return self.joined(self.cut)
