"""The possible layouts, numbers of ranks and batch sizes nearest to an impossible configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from itertools import islice

from megatron_hyena.config.sections import Config

Fits = Callable[[Config, int], bool]
"""Whether a configuration is possible on so many ranks."""
NAMED = 3
"""At most so many of a kind are named."""


def nearest_layouts(
    config: Config, world_size: int, fits: Fits, keep_batch: bool = False
) -> list[str]:
    """Up to three layouts of `world_size` ranks, nearest first, such as "tensor 2 x context 1".

    Nearest in |log2(t / t0)| + |log2(c / c0)|. The rest of the configuration is kept, but for
    `parallel.sequence`, which one tensor rank cannot have, and, where every layout needs it and
    `keep_batch` is false, the global batch size: then the layout's text says what else to set.
    """
    for change_batch in (False,) if keep_batch else (False, True):
        found = _possible(config, world_size, fits, change_batch)
        named = [_describe(config, candidate) for candidate in islice(found, NAMED)]
        if named:
            return named
    return []


def nearest_ranks(config: Config, world_size: int, fits: Fits) -> list[int]:
    """Up to three numbers of ranks, nearest first, on which `config` is possible as it is."""
    group = config.parallel.tensor * config.parallel.context
    most = config.train.global_batch_size // config.train.micro_batch_size
    counts = sorted((group * n for n in range(1, most + 1)), key=lambda n: abs(n - world_size))
    return list(islice((n for n in counts if fits(config, n)), NAMED))


def nearest_batches(config: Config, data_ranks: int) -> list[int]:
    """The multiples of micro-batch size x `data_ranks` around the global batch size."""
    unit, size = config.train.micro_batch_size * data_ranks, config.train.global_batch_size
    around = {size // unit * unit, -(-size // unit) * unit} - {0}
    return sorted(around, key=lambda batch: (abs(batch - size), batch))


def _possible(config: Config, world_size: int, fits: Fits, change_batch: bool) -> Iterator[Config]:
    now = config.parallel
    pairs = (
        (tensor, context)
        for tensor in range(1, world_size + 1)
        if world_size % tensor == 0
        for context in range(1, world_size // tensor + 1)
        if world_size // tensor % context == 0
    )

    def distance(pair: tuple[int, int]) -> tuple[float, int, int]:
        far = abs(math.log2(pair[0] / now.tensor)) + abs(math.log2(pair[1] / now.context))
        return (round(far, 9), *pair)

    for tensor, context in sorted(pairs, key=distance):
        parallel = dataclasses.replace(
            now, tensor=tensor, context=context, sequence=now.sequence and tensor > 1
        )
        candidate = dataclasses.replace(config, parallel=parallel)
        if change_batch:
            batch = nearest_batches(candidate, world_size // (tensor * context))[0]
            train = dataclasses.replace(config.train, global_batch_size=batch)
            candidate = dataclasses.replace(candidate, train=train)
        if fits(candidate, world_size):
            yield candidate


def _describe(before: Config, after: Config) -> str:
    parallel, also = after.parallel, []
    if parallel.sequence != before.parallel.sequence:
        also.append("parallel.sequence=false")
    if after.train.global_batch_size != before.train.global_batch_size:
        also.append(f"train.global_batch_size={after.train.global_batch_size}")
    text = f"tensor {parallel.tensor} x context {parallel.context}"
    return f"{text} (with {' and '.join(also)})" if also else text
