"""Filters to build by hand: the layer's, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_hyena import (
    GenomicHyenaFilter,
    HyenaBlock,
    HyenaFilter,
    HyenaGLTConfig,
)
from megatron_hyena.compat.operators import operator_config
from megatron_hyena.errors import UserError
from megatron_hyena.layers.filters import GenomicHyenaFilter as BankOfLayers
from megatron_hyena.layers.hyena_order import HyenaFilter as FilterOfLayers
from megatron_hyena.layers.provider import DenseProvider
from tests.oracles import operators
from tests.oracles.drawing import weights

D, LONGEST = 16, 64
SMALL = HyenaGLTConfig(
    pattern="[H]2", hidden_size=D, num_heads=4, hyena_filter_order=8, max_sequence_length=LONGEST
)


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


def test_filters_are_those_of_the_layer_and_prefixes_of_themselves() -> None:
    made_filter = HyenaFilter(D, filter_order=8, l_max=LONGEST)
    layer = FilterOfLayers(operator_config(D, LONGEST, 1, 8), DenseProvider())
    layer.load_state_dict(made_filter.network.state_dict())
    taps = made_filter(LONGEST)
    assert taps.shape == (D, LONGEST) == made_filter.filters.shape
    assert made_filter.filter_size == LONGEST
    assert torch.equal(taps, layer(LONGEST, torch.float32))
    torch.testing.assert_close(made_filter(20), taps[:, :20])
    with pytest.raises(UserError, match="64 taps has no 65"):
        made_filter(65)
    expected = operators.implicit_taps(weights(layer), 30, LONGEST)
    np.testing.assert_allclose(made_filter(30).detach().numpy(), expected, atol=1e-5)


def test_a_filter_of_a_configuration() -> None:
    config = HyenaGLTConfig(hidden_size=D, num_heads=4, hyena_filter_size=10)
    bank = HyenaFilter(config)
    assert bank.filters.shape == (D, 10) == (D, bank.filter_size)
    assert HyenaBlock(config).filter_size == 10


def test_a_bank_of_motifs() -> None:
    config = HyenaGLTConfig(hidden_size=D, num_heads=4, hyena_filter_size=20)
    bank = GenomicHyenaFilter(config)
    assert bank.filter_size == 20
    layer = BankOfLayers(config, DenseProvider())
    layer.load_state_dict(bank.network.state_dict())
    assert torch.equal(bank.filters, layer.filters)
    assert torch.equal(bank(7), layer.filters[:, :7])
    assert GenomicHyenaFilter(HyenaGLTConfig(hidden_size=D, num_heads=4)).filters.shape == (D, 128)
    with pytest.raises(UserError, match="20 taps has no 21"):
        bank(21)
