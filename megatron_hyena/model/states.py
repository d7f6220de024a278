"""Hidden states of a chosen layer, one for each byte, wherever in the pattern the layer stands.

    embedding     of the bytes, with that of the sequence's type
    block.0 …     the residual stream behind a block, by its number in the pattern
    final         behind the last block and the final norm

Inside of a merged stage the positions are chunks: each byte has the state of the chunk that it
belongs to, of nested stages that of the innermost. L bytes, B rows, h channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from megatron_hyena.config.pattern import Layout, Stage
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.stage import Merge
from megatron_hyena.model.hyena_glt import HyenaGLT, Tracks

FINAL = "final"


def layer_name(layer: str | int, model: HyenaGLT) -> str:
    """`layer` by its full name: a number is a block, -1 the final states.

    Raises:
        UserError: the model has no such layer; those that it has are named.
    """
    count, text = len(model.blocks), str(layer)
    if text == "-1":
        return FINAL
    name = f"block.{text}" if text.isdigit() else text
    if name in ("embedding", FINAL) or name in {f"block.{n}" for n in range(count)}:
        return name
    raise UserError(
        f"the model {model.config.pattern!r} has no layer {text!r}; give embedding, block.0 to "
        f"block.{count - 1}, or final (-1)"
    )


class Tap:
    """What leaves one layer in every forward pass of `model`; see the module for names.

    Raises:
        UserError: no such layer.
    """

    def __init__(self, model: HyenaGLT, layer: str | int) -> None:
        self.name = layer_name(layer, model)
        self._seen: Tensor | None = None
        self._around: tuple[int, ...] = ()
        module: nn.Module = model.final_norm
        if self.name == "embedding":
            module = model.embedding if model.types is None else model.types
        elif self.name != FINAL:
            number = int(self.name.removeprefix("block."))
            module = model.blocks[number]
            self._around = _stages_around(model.layout, number)
        self._handle = module.register_forward_hook(self._see)

    def _see(self, module: nn.Module, given: object, output: Tensor) -> None:
        self._seen = output

    def take(self, merges: Mapping[int, Merge]) -> Tensor:
        """States [L, B, h] of the pass that was just made, whose stages decided `merges`."""
        assert self._seen is not None
        x, self._seen = self._seen, None
        for number in reversed(self._around):
            x = merges[number].chunks.read(x)
        return x

    def remove(self) -> None:
        """See no more passes."""
        self._handle.remove()


def _stages_around(layout: Layout, block: int) -> tuple[int, ...]:
    """Numbers of the stages that a block is in, the outermost first."""

    def search(items: tuple[int | Stage, ...], path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        for item in items:
            if isinstance(item, Stage):
                yield from search(item.items, (*path, item.number))
            elif item == block:
                yield path

    return next(search(layout.items, ()))


@contextmanager
def tapped(model: HyenaGLT, layer: str | int) -> Iterator[Tap]:
    """A `Tap` for as long as the body runs."""
    tap = Tap(model, layer)
    try:
        yield tap
    finally:
        tap.remove()


@torch.no_grad()
def layer_states(
    model: HyenaGLT, input_ids: Tensor, layer: str | int = FINAL, tracks: Tracks | None = None
) -> Tensor:
    """States [B, L, h] of one layer for ids [B, L], read whole.

    Raises:
        UserError: no such layer, or inputs that do not fit together.
    """
    with tapped(model, layer) as tap:
        merges = model(input_ids, tracks=tracks).merges
        x = tap.take(dict(enumerate(merges)))
    return x[: input_ids.shape[1]].transpose(0, 1)
