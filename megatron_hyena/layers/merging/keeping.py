"""The rate controls of all stages of a model, moved together: before training, and after steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from megatron_hyena.layers.merging.rate import Rate


def _of_one_rank(counts: Tensor) -> Tensor:
    return counts


class Rates:
    """The rate controls of a model's stages, outermost first; does nothing without stages.

    Args:
        model: what holds the stages.
        summed: turns this rank's counts into those of all ranks.
    """

    def __init__(self, model: nn.Module, summed: Callable[[Tensor], Tensor] = _of_one_rank) -> None:
        self.rates = [module for module in model.modules() if isinstance(module, Rate)]
        self.summed = summed

    def calibrate(self, forward: Callable[[], object]) -> None:
        """Before the first step: shift each stage to its rate on the first batch.

        An inner stage's positions are an outer one's chunks, so stages are set in turn, each after
        a `forward` of the whole batch, in training mode.
        """
        for rate in self.rates:
            self._zero()
            forward()
            rate.start(self.summed(rate.take()))
        self._zero()

    def update(self) -> tuple[dict[str, float], ...]:
        """After a step: the figures of each stage, whose state has moved; see `Rate.update`."""
        return tuple(rate.update(self.summed(rate.take())) for rate in self.rates)

    def _zero(self) -> None:
        for rate in self.rates:
            rate.take()


def named_figures(stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of each stage in one: `merge/0/kept` and so on."""
    return {
        f"merge/{number}/{name}": value
        for number, stage in enumerate(stages)
        for name, value in stage.items()
    }


@contextmanager
def counting(model: nn.Module) -> Iterator[None]:
    """Without gradients and in training mode, in which stages count; each module's mode returns."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
