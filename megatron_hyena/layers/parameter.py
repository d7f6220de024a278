"""A parameter carries how it is cut, how it starts, and how the optimizer treats it.

Synchronisation of gradients, norms, saving, re-cutting and conversion read this; nothing in the
project matches on parameter names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Init = Callable[[Tensor, torch.Generator], object]
"""Fills a full (uncut) fp32 tensor in place."""
Role = Literal["matrix", "vector", "filter", "router"]


@dataclass(frozen=True)
class Cut:
    """How a parameter is spread over the tensor-parallel ranks.

    Attributes:
        shape: full shape, before cutting.
        dim: the dimension that is cut; None for a replicated parameter.
        blocks: equal blocks along `dim`, each cut by itself (2 for a fused [gate; value] pair).
        sequence_partial: replicated, but under sequence parallelism each rank sees only its
            slice of the sequence, so its gradients must be summed over the tensor ranks.
        role: `matrix` has weight decay; `vector` (norms, biases) has none; `filter` (taps,
            modes, skips, filter networks) and `router` have none and a factor of their own on the
            learning rate.
        init: draws the full initial tensor.
    """

    shape: tuple[int, ...]
    init: Init
    dim: int | None = None
    blocks: int = 1
    sequence_partial: bool = False
    role: Role = "matrix"

    def local_shape(self, size: int) -> tuple[int, ...]:
        """Shape on one of `size` ranks."""
        if self.dim is None:
            return self.shape
        return tuple(n // size if i == self.dim else n for i, n in enumerate(self.shape))

    def take(self, full: Tensor, rank: int, size: int) -> Tensor:
        """The part of `full` that `rank` of `size` holds."""
        if self.dim is None or size == 1:
            return full
        blocks = full.chunk(self.blocks, dim=self.dim)
        return torch.cat([b.chunk(size, dim=self.dim)[rank] for b in blocks], dim=self.dim)

    def join(self, parts: list[Tensor]) -> Tensor:
        """The full tensor from the parts of all ranks, in order (inverse of `take`)."""
        if self.dim is None or len(parts) == 1:
            return parts[0]
        pieces = [part.chunk(self.blocks, dim=self.dim) for part in parts]
        rows = [p[b] for b in range(self.blocks) for p in pieces]
        return torch.cat(rows, dim=self.dim)


def cut_parameter(cut: Cut, size: int) -> nn.Parameter:
    """An uninitialised fp32 parameter of `cut`'s local shape that carries `cut`."""
    parameter = nn.Parameter(torch.empty(cut.local_shape(size)))
    parameter.cut = cut  # type: ignore[attr-defined]
    # The attribute by which DeepSpeed and Megatron tell parts from copies in the gradient norm.
    parameter.tensor_model_parallel = cut.dim is not None  # type: ignore[attr-defined]
    return parameter


def cut_of(parameter: nn.Parameter) -> Cut:
    """The `Cut` of a parameter made by `cut_parameter`."""
    cut: Cut = parameter.cut  # type: ignore[attr-defined]
    return cut


@dataclass(frozen=True)
class Treatment:
    """How fine-tuning treats a parameter.

    Attributes:
        begins: it stays as it is before this optimizer step, counted from 0.
        lr_factor: on the learning rate, besides its role's.
    """

    begins: int = 0
    lr_factor: float = 1.0


def treat(parameter: nn.Parameter, treatment: Treatment) -> None:
    """Let `parameter` carry its treatment."""
    parameter.treatment = treatment  # type: ignore[attr-defined]


def treatment_of(parameter: nn.Parameter) -> Treatment:
    """What `treat` gave it, else that of pretraining: from the first step at the full rate."""
    found: Treatment = getattr(parameter, "treatment", Treatment())
    return found


@torch.no_grad()
def initialise(module: nn.Module, seed: int, rank: int, size: int) -> None:
    """Fill every parameter of `module`: drawn whole, from (seed, name), then cut.

    The full tensor does not depend on the layout, so neither does any weight. On the meta device
    there is nothing to fill.
    """
    for name, parameter in module.named_parameters():
        if parameter.device.type == "meta":
            continue
        cut = cut_of(parameter)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        full = torch.empty(cut.shape, dtype=torch.float32)
        cut.init(full, generator)
        parameter.copy_(cut.take(full, rank, size))


def normal(std: float) -> Init:
    """N(0, std^2)."""
    return lambda full, generator: full.normal_(0.0, std, generator=generator)


def uniform(low: float, high: float) -> Init:
    """U(low, high)."""
    return lambda full, generator: full.uniform_(low, high, generator=generator)


def constant(value: float) -> Init:
    """The same value everywhere."""
    return lambda full, generator: full.fill_(value)


def drawn_seed() -> int:
    """A seed for `initialise` from torch's own generator: for modules that are made by hand."""
    return int(torch.randint(1 << 62, (), device="cpu"))
