"""Functions that `torch.compile` calls and does not look into.

The layouts of several documents (`ops.documents`) are as wide as the data make them, and a graph's
shapes may not depend on data. So in a graph an operator on documents is one node, of the shape of
its input; what the node runs is the operator itself, and in the backward pass the operator again,
with its own gradients. Outside of `torch.compile` nothing here is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# An exported model brings this module under another name, beside this one in one process.
NAMESPACE = re.sub(r"\W", "_", __name__)
Body = Callable[[Sequence[Tensor], Sequence[int]], Tensor]
"""(tensors, numbers) -> a new tensor, of the shape and dtype of the first."""


def opaque(name: str, body: Body) -> Body:
    """`body` as one node of a graph, differentiable in all its floating tensors.

    Only these are kept for the backward pass, which runs `body` a second time.

    Args:
        name: of the node.
        body: uses every floating tensor that it is given.
    """
    operators = getattr(torch.ops, NAMESPACE)
    while hasattr(operators, name):  # the module was loaded before
        name += "_"
    forward_name, backward_name = f"{NAMESPACE}::{name}", f"{NAMESPACE}::{name}_backward"
    inputs = "Tensor[] tensors, int[] numbers"
    torch.library.define(forward_name, f"({inputs}) -> Tensor")
    torch.library.define(backward_name, f"(Tensor grad, {inputs}) -> Tensor[]")
    node: Body = getattr(operators, name).default
    back = getattr(operators, f"{name}_backward").default

    def forward(tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
        with torch.no_grad():
            return body(tensors, numbers).contiguous()

    def backward(grad: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[Tensor]:
        with torch.enable_grad():
            given = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
            out = body(given, numbers)
            found = torch.autograd.grad(out, _floating(given), grad)
        return [gradient.contiguous() for gradient in found]

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors, ctx.numbers = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None], Any]:
        tensors = ctx.saved_tensors
        found = iter(back(grad, tensors, ctx.numbers))
        gradients = [next(found) if t.is_floating_point() else None for t in tensors]
        return gradients, None if ctx.numbers else []  # torch takes [] for no tensors

    torch.library.impl(forward_name, "default", forward)
    torch.library.impl(backward_name, "default", backward)
    torch.library.register_fake(forward_name, lambda tensors, *_: _like(tensors[0]))
    torch.library.register_fake(
        backward_name, lambda _, tensors, *__: [_like(t) for t in _floating(tensors)]
    )
    torch.library.register_autograd(forward_name, differentiate, setup_context=remember)
    return node


def _floating(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.is_floating_point()]


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
