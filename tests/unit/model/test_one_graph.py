"""`torch.compile(model, fullgraph=True)` is one graph for all inputs, and the same model.

Forward and backward, in fp64, against the model as it stands. The default run holds one model of
every layer and packed documents of two; the others, recomputation and both sides run by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.compiled import assert_one_graph
from tests.oracles.drawing import draw_bytes, open_branches, small_config, small_model

LENGTH, BATCH = 140, 2
Given = tuple[Tensor, Tensor | None, dict[str, Tensor]]


def drawn(index: int, packed: bool = False) -> Given:
    """Bytes, numbers of documents, and how conserved each byte is, here and there unknown."""
    generator = torch.Generator().manual_seed(index)
    ids = draw_bytes(BATCH, LENGTH, index)
    score = torch.rand(BATCH, LENGTH, generator=generator, dtype=torch.float64)
    begins = torch.rand(BATCH, LENGTH, generator=generator) < 0.01 * (index % 9)
    tracks = {"conservation": score.masked_fill(score < 0.3, float("nan"))}
    return ids, begins.long().cumsum(1) if packed else None, tracks


def losses(model: HyenaGLT) -> Callable[..., tuple[Tensor, ...]]:
    def run(ids: Tensor, documents: Tensor | None, tracks: dict[str, Tensor]) -> Any:
        output = model(ids, labels=ids, document_ids=documents, tracks=tracks)
        return output.loss, output.logits, output.last_hidden_state

    return run


def assert_compiles(model: HyenaGLT, count: int, packed: bool = False) -> None:
    open_branches(model)
    inputs = [drawn(i, packed) for i in range(count)]
    assert assert_one_graph(losses(model), list(model.parameters()), inputs) > 40


@pytest.mark.smoke
def test_a_model_of_every_layer_is_one_graph_for_all_inputs() -> None:
    assert_compiles(small_model(small_config("SMLHGAW")), 5)


@pytest.mark.parametrize("pattern", ["SA", pytest.param("SMLHGAW", marks=pytest.mark.slow)])
def test_a_model_is_one_graph_however_its_rows_are_packed(pattern: str) -> None:
    """Shapes in the graph do not depend on where documents begin, nor on their number."""
    assert_compiles(small_model(small_config(pattern)), 10, packed=True)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sign", "SMLHGAW")
def test_each_layer_alone(sign: str, packed: bool) -> None:
    assert_compiles(small_model(small_config(sign)), 20, packed)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_with_blocks_computed_again_in_the_backward_pass(packed: bool) -> None:
    model = HyenaGLT(small_config("SMLHGAW"), recompute="block").double()
    model.train()
    assert_compiles(model, 20, packed)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_of_both_sides(packed: bool) -> None:
    """Whether a row holds PAD, a document of its own there, is data too."""
    model = small_model(small_config("SLHAW", causal=False))
    inputs = [drawn(i, packed) for i in range(20)]
    for ids, _, _ in inputs[::3]:
        ids[0, -20:] = 1
    assert_one_graph(losses(model), list(model.parameters()), inputs)
