"""What a compiled function is held against: itself as it stands, and the number of its graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager


def assert_exact(ours: Tensor, theirs: Tensor) -> None:
    """Equal but for sums in another order, in fp64."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


class Graphs:
    """A compiler that traces forward and backward, runs them as traced, and counts its graphs.

    Attributes:
        sizes: operations of each graph that was compiled.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        run: Callable[..., Any] = aot_eager(graph, inputs)  # may raise, to be called once more
        self.sizes.append(len(graph.graph.nodes))
        return run


def compiled(function: Callable[..., Any]) -> tuple[Callable[..., Any], Graphs]:
    """`function` as one graph, compiled anew."""
    torch._dynamo.reset()
    graphs = Graphs()
    return torch.compile(function, fullgraph=True, backend=graphs), graphs


def gradients(total: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Of each, None where it has no part in `total`."""
    return list(torch.autograd.grad(total, wanted, allow_unused=True))


def assert_one_graph(
    function: Callable[..., tuple[Tensor, ...]],
    wanted: Sequence[Tensor],
    inputs: Iterable[tuple[Any, ...]],
) -> int:
    """Compiled once for all inputs, `function` returns what it does uncompiled, and so backwards.

    Args:
        function: its first tensor is differentiated.
        wanted: by these.
    Returns:
        operations in the graph.
    """
    run, graphs = compiled(function)
    for given in inputs:
        results, expected = run(*given), function(*given)
        for ours, theirs in zip(results, expected, strict=True):
            assert_exact(ours, theirs)
        found, right = gradients(results[0], wanted), gradients(expected[0], wanted)
        assert any(g is not None and g.abs().max() > 1e-3 for g in right)
        for g, r in zip(found, right, strict=True):
            assert (g is None) == (r is None)
            if g is not None and r is not None:
                assert_exact(g, r)
    assert len(graphs.sizes) == 1
    return graphs.sizes[0]
