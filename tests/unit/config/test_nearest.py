"""The layouts named beside an impossible one are the nearest possible ones: all pairs are tried."""

from __future__ import annotations

import itertools
import math
import random
import re

import pytest

from megatron_hyena.config import Config, check_layout, load_config
from megatron_hyena.errors import UserError

GROUPS, WIDTHS, HEADS = (0, 4, 6), (48, 96, 120), (2, 3, 4, 6, 12)


def possible(config: Config, tensor: int, context: int, ranks: int, batch: int) -> bool:
    """Written out from the pages, without the rules of the program; sequence parallelism aside."""
    model, heads = config.model, config.model.num_heads
    share = [model.hidden_size, 256, model.ffn_hidden_size]
    share += (
        [model.num_filter_groups or model.hidden_size // 16] if set("SM") & {*model.signs} else []
    )
    share += [heads] if set("AW") & {*model.signs} else []
    whole = ranks % (tensor * context) == 0 and all(n % tensor == 0 for n in share)
    if not whole or context > config.data.sequence_length:
        return False
    exchange = config.parallel.exchange
    if "H" in model.signs and model.hidden_size // tensor % context:
        return False
    if "L" in model.signs and exchange.L == "all_to_all" and model.hidden_size // tensor % context:
        return False
    if "A" in model.signs and exchange.A == "all_to_all" and heads // tensor % context:
        return False
    return batch % (ranks // tensor // context) == 0


def nearest(config: Config, ranks: int) -> list[str]:
    """All pairs of numbers up to `ranks`, sorted."""
    now = config.parallel

    def far(pair: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        steps = abs(math.log2(pair[0]) - math.log2(now.tensor))
        return round(steps + abs(math.log2(pair[1]) - math.log2(now.context)), 6), pair

    sizes = range(1, ranks + 1)
    pairs = sorted(itertools.product(sizes, sizes), key=far)
    batch = config.train.global_batch_size
    kept = [p for p in pairs if possible(config, p[0], p[1], ranks, batch)]
    return [
        f"tensor {t} x context {c}"
        + (" (with parallel.sequence=false)" if now.sequence and t == 1 else "")
        for t, c in kept[:3]
    ]


def drawn(seed: int) -> tuple[Config, int]:
    """A configuration that may or may not be possible, and a number of ranks."""
    draw = random.Random(seed)
    tensor, context = draw.choice((1, 2, 3, 4, 5, 6)), draw.choice((1, 2, 3, 4, 5, 8))
    overrides = [
        f"model.pattern={draw.choice(('S', 'L', 'A', 'SH', 'SMLA', 'LW', 'HA'))}",
        f"model.hidden_size={draw.choice(WIDTHS)}",
        f"model.num_heads={draw.choice(HEADS)}",
        f"model.num_filter_groups={draw.choice(GROUPS)}",
        f"model.ffn_hidden_size={draw.choice((48, 96))}",
        f"data.sequence_length={draw.choice((3, 6, 1001))}",
        f"parallel.tensor={tensor}",
        f"parallel.context={context}",
        f"parallel.sequence={draw.choice(('true', 'false'))}",
        f"parallel.exchange.L={draw.choice(('', 'all_to_all'))}",
        f"parallel.exchange.A={draw.choice(('', 'all_to_all', 'all_gather'))}",
        f"train.global_batch_size={draw.choice((6, 8, 12, 24, 60))}",
    ]
    return load_config(None, overrides), tensor * context * draw.choice((1, 2, 3, 4))


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (50, 100))]
)
def test_named_layouts_are_the_nearest_of_all_pairs(first: int) -> None:
    outcomes = {"passes": 0, "named": 0, "batch": 0}
    for seed in range(first, first + 50):
        try:
            config, ranks = drawn(seed)
        except UserError:  # heads or groups that do not divide the channels
            continue
        expected = nearest(config, ranks)
        parallel, batch = config.parallel, config.train.global_batch_size
        sound = possible(config, parallel.tensor, parallel.context, ranks, batch)
        if sound and not (parallel.sequence and parallel.tensor == 1):
            check_layout(config, ranks)
            outcomes["passes"] += 1
            continue
        with pytest.raises(UserError) as caught:
            check_layout(config, ranks)
        message = str(caught.value)
        named = re.search(r"nearest layouts for \d+ ranks?: (.*)$", message)
        if expected:
            assert named and named[1].split(", ") == expected, (seed, message)
            outcomes["named"] += 1
        elif not message.startswith("train.global_batch_size"):
            assert named and "train.global_batch_size=" in named[1], (seed, message)
            outcomes["batch"] += 1
    assert min(outcomes.values()) >= 2, outcomes


def test_what_is_named_with_another_batch_size_is_possible() -> None:
    overrides = ["parallel.tensor=3", "model.pattern=H", "parallel.sequence=true"]
    with pytest.raises(UserError) as caught:
        check_layout(load_config(None, overrides), 21)
    assert str(caught.value).endswith(
        "; nearest layouts for 21 ranks: tensor 1 x context 1 (with parallel.sequence=false and "
        "train.global_batch_size=21)"
    )
    overrides = ["model.pattern=H", "train.global_batch_size=21"]
    check_layout(load_config(None, overrides), 21)


def test_a_batch_that_does_not_fit_names_batches_and_no_layout_with_another_batch() -> None:
    with pytest.raises(UserError) as caught:
        check_layout(load_config(None, ["model.pattern=H"]), 7)
    assert str(caught.value).endswith(" = 1 x 7; nearest global batch sizes: 7, 14")


@pytest.mark.parametrize(
    ("ranks", "overrides", "named"),
    [
        (5, ["parallel.tensor=2"], "4, 2, 8"),  # not 6: 8 sequences for 3 data ranks
        (5, ["parallel.tensor=2", "train.global_batch_size=12"], "4, 6, 2"),
        (7, ["parallel.tensor=2", "parallel.context=2"], "8, 4, 16"),
        (1, ["parallel.tensor=4"], "4, 8, 16"),
        (100, ["parallel.tensor=8", "train.micro_batch_size=2"], "32, 16, 8"),
        (1, ["parallel.context=6", "train.global_batch_size=1"], "6"),
    ],
)
def test_nearest_numbers_of_ranks(ranks: int, overrides: list[str], named: str) -> None:
    with pytest.raises(UserError) as caught:
        check_layout(load_config(None, overrides), ranks)
    assert f"; nearest numbers of ranks: {named}; nearest layouts for" in str(caught.value)


def test_no_number_of_ranks_is_named_where_the_layout_itself_is_impossible() -> None:
    with pytest.raises(UserError) as caught:
        check_layout(load_config(None, ["parallel.tensor=3"]), 4)
    assert "numbers of ranks" not in str(caught.value)
    assert "nearest layouts for 4 ranks: " in str(caught.value)
