"""The table from kind of layer to exchange: what is taken, overridden, and ruled out."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_hyena.config import SIGNS, exchange_of, load_config
from megatron_hyena.config.sections import ExchangeSection, ParallelSection
from megatron_hyena.errors import UserError

# (sign, what else is set, exchange), with 3 x 2 x 16 = 96 channels and 12 heads of 8.
MODEL = ["model.pattern=SMLHGAW", "model.hidden_size=96", "model.num_heads=12"]
CASES = [
    ("S", ["parallel.context=2"], "halo"),
    ("M", ["parallel.context=2"], "halo"),
    ("L", ["parallel.context=2"], "state"),
    ("H", ["parallel.context=2"], "all_to_all"),
    ("A", ["parallel.context=2"], "all_to_all"),
    ("W", ["parallel.context=2"], "halo"),
    ("A", ["parallel.context=12"], "all_to_all"),
    ("A", ["parallel.context=6", "parallel.tensor=2"], "all_to_all"),
    ("A", ["parallel.context=12", "parallel.tensor=2"], "all_gather"),  # 6 heads for 12 ranks
    ("A", ["parallel.context=5"], "all_gather"),
    ("A", ["parallel.context=24"], "all_gather"),
    ("H", ["parallel.context=48", "parallel.tensor=2"], "all_to_all"),
    ("S", ["parallel.context=5"], "halo"),
    ("L", ["parallel.context=5"], "state"),
    ("S", ["parallel.context=2", "parallel.exchange.S=all_to_all"], "all_to_all"),
    ("M", ["parallel.context=2", "parallel.exchange.S=all_to_all"], "halo"),
    ("L", ["parallel.context=2", "parallel.exchange.L=all_to_all"], "all_to_all"),
    ("A", ["parallel.context=2", "parallel.exchange.A=all_gather"], "all_gather"),
    ("A", ["parallel.exchange.A=all_gather"], "local"),
]


@pytest.mark.parametrize(("sign", "overrides", "exchange"), CASES)
def test_the_exchange_of_a_kind_of_layer(sign: str, overrides: list[str], exchange: str) -> None:
    assert exchange_of(load_config(None, [*MODEL, *overrides]), sign) == exchange


@pytest.mark.parametrize("sign", SIGNS)
def test_one_context_rank_exchanges_nothing(sign: str) -> None:
    assert exchange_of(load_config(None, MODEL), sign) == "local"


def test_every_kind_is_in_the_table_and_can_be_overridden_with_each_of_its_exchanges() -> None:
    names = [f.name for f in dataclasses.fields(ExchangeSection)]
    assert names == list(SIGNS)
    for sign in SIGNS:
        assert SIGNS[sign].exchanges
        for exchange in SIGNS[sign].exchanges:
            overrides = ["parallel.context=2", f"parallel.exchange.{sign}={exchange}"]
            assert exchange_of(load_config(None, [*MODEL, *overrides]), sign) == exchange


def test_a_kind_that_no_exchange_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, [*MODEL, "parallel.context=5"])
    with pytest.raises(UserError, match=r"kind H cannot be split over parallel.context = 5 ranks"):
        exchange_of(config, "H")
    monkeypatch.setitem(SIGNS, "E", dataclasses.replace(SIGNS["S"], exchanges=()))
    with pytest.raises(UserError, match="kind E cannot be split"):
        exchange_of(config, "E")


@pytest.mark.parametrize(
    ("recompute", "signs"),
    [
        ("none", ""),
        ("block", "SMLHGAW"),
        ("A", "A"),
        ("SM", "SM"),
        ("MS", "SM"),
        ("SMLHGAW", "SMLHGAW"),
    ],
)
def test_which_blocks_are_recomputed(recompute: str, signs: str) -> None:
    section = ParallelSection(recompute=recompute)
    assert [sign for sign in SIGNS if section.recomputes(sign)] == list(signs)
