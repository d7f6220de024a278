"""Filters that start from motifs, against scores counted letter by letter; filters by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.huggingface.export import export_huggingface
from megatron_hyena.config import filters as names
from megatron_hyena.errors import UserError
from megatron_hyena.layers import filters
from megatron_hyena.layers.exchange import ALL_CHANNELS
from megatron_hyena.layers.filters import GenomicHyenaFilter, LongFilter, register_hyena_filter
from megatron_hyena.layers.hyena import filter_parameter
from megatron_hyena.layers.hyena_order import HyenaFilter, HyenaOperator
from megatron_hyena.layers.motifs import motif_filters
from megatron_hyena.layers.parameter import constant, initialise
from megatron_hyena.layers.provider import DenseProvider, Provider
from megatron_hyena.layers.span import Span
from tests.oracles.drawing import draw, small_config, small_mixer

GENOME = "ACGTATATAAAGGCACGTGATTATATTTACCACCTGCGCGTANTATAAATCA"
MEANT = {"C": "C", "G": "G", "T": "T", "A": "A", "W": "AT", "N": "ACGT", "R": "AG"}


def filled(motifs: tuple[str, ...], channels: int, taps: int) -> Tensor:
    full = torch.empty(channels, taps)
    motif_filters(motifs)(full, torch.Generator())
    return full.double()


def score(pattern: str, last: int) -> float:
    """Weight of the window of GENOME that ends at `last`; what lies before the start is 0."""
    total = 0.0
    for place, letter in enumerate(pattern):
        at = last - (len(pattern) - 1) + place
        base = GENOME[at] if at >= 0 else "-"
        if base in "ACGT":
            total += (1 / len(MEANT[letter]) if base in MEANT[letter] else 0.0) - 0.25
    return total


def carried() -> Tensor:
    """Four channels that carry the bases A, C, G, T of GENOME: [4, 1, L]."""
    rows = [[float(letter == base) for letter in GENOME] for base in "ACGT"]
    return torch.tensor(rows, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("taps", [7, 10, 30])
@pytest.mark.parametrize("pattern", ["TATAWAW", "CANNTG", "CG", "RTG"])
def test_four_channels_that_carry_the_bases_add_up_to_the_score(pattern: str, taps: int) -> None:
    """With copies, as many as fit, each earlier one of half the weight."""
    found = filled((pattern,), 4, taps)
    raw = torch.zeros(len(GENOME), dtype=torch.float64)
    norm = 0.0
    for copy in range(taps // len(pattern)):
        for t in range(len(GENOME)):
            raw[t] += 0.5**copy * score(pattern, t - copy * len(pattern))
        for letter in pattern:
            for base in "ACGT":
                share = 1 / len(MEANT[letter]) if base in MEANT[letter] else 0.0
                norm += 0.25**copy * (share - 0.25) ** 2
    y = torch.zeros(4, len(GENOME), dtype=torch.float64)
    for t in range(len(GENOME)):
        for lag in range(min(taps, t + 1)):
            y[:, t] += found[:, lag] * carried()[:, 0, t - lag]
    torch.testing.assert_close(y.sum(0), raw / math.sqrt(norm), rtol=1e-6, atol=1e-6)


def test_the_score_is_largest_exactly_where_the_motif_ends() -> None:
    taps, found = filled(("TATAWAW",), 4, 7), []
    for t in range(6, len(GENOME)):
        window = carried()[:, 0, t - 6 : t + 1].flip(1)
        found.append(float((taps * window).sum()))
    ends = [t + 6 for t, value in enumerate(found) if value >= max(found) - 1e-6]
    fits = [
        t
        for t in range(6, len(GENOME))
        if all(
            base in MEANT[letter]
            for base, letter in zip(GENOME[t - 6 : t + 1], "TATAWAW", strict=True)
        )
    ]
    assert ends == fits == [9, 49]


@pytest.mark.parametrize("taps", [7, 10, 128, 4096])
def test_every_pattern_has_the_same_norm_and_no_filter_rings(taps: int) -> None:
    """The seeds' tiled patterns have a norm of 11 and a gain of 128 over 128 taps."""
    full = filled(("cg_dinucleotide", "tata_box", "palindrome"), 32, taps)
    for rows in full.split(4):
        assert rows.norm().item() == pytest.approx(1.0)
    gain = torch.fft.rfft(full, n=2 * taps).abs().amax()
    assert gain < 3
    assert full[:, 100:].norm() < 1e-3


def test_patterns_go_round_over_groups_of_four() -> None:
    full = filled(("cg_dinucleotide", "tata_box", "palindrome"), 22, 10)
    one = [filled((pattern,), 4, 10) for pattern in ("CG", "TATAWAW", "CANNTG")]
    assert torch.equal(full[:4], one[0]) and torch.equal(full[16:20], one[0])
    assert torch.equal(full[4:8], one[1]) and torch.equal(full[12:16], one[2])
    assert torch.equal(full[20:], one[1][:2]), "a group cut short"
    # The opposite strand of the TATA box: bases and letters turned round.
    backwards = one[1][[3, 2, 1, 0]][:, :7].flip(1)
    torch.testing.assert_close(full[8:12, :7], backwards)


class Share(DenseProvider):
    """A provider in name only: the place of one tensor rank."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_cut_over_ranks_does_not_change_the_filters(size: int) -> None:
    """Eight ranks of three channels each: patterns are cut in two."""
    config = small_config("G", hidden_size=24, hyena_filter="genomic", hyena_filter_size=9)
    parts = []
    for rank in range(size):
        bank = GenomicHyenaFilter(config, Share(rank, size))
        initialise(bank, 0, rank, size)
        assert bank.filters.shape == (24 // size, bank.filter_size)
        parts.append(bank.filters.detach())
    assert torch.equal(torch.cat(parts).double(), filled(config.motifs, 24, 9))


def test_a_bank_gives_the_taps_of_some_channels() -> None:
    bank = GenomicHyenaFilter(small_config("H", hyena_filter_size=20), DenseProvider())
    initialise(bank, 0, 0, 1)
    for length in (1, 19, 20, 21):
        taps = bank(length, torch.float64, slice(2, 5))
        assert taps.dtype == torch.float64
        assert torch.equal(taps, bank.filters[2:5, :length].double())


class Echo(LongFilter):
    """One tap, three positions back."""

    def __init__(self, config: HyenaGLTConfig, provider: Provider) -> None:
        super().__init__(config, provider)
        self.tap = filter_parameter((config.hidden_size, 1), constant(0.5), provider)

    def forward(self, length: int, dtype: torch.dtype, channels: slice = ALL_CHANNELS) -> Tensor:
        """See `LongFilter.forward`."""
        taps = torch.nn.functional.pad(self.tap[channels].to(dtype), (3, 0))
        return taps[:, :length]


@pytest.fixture
def registered(own_filter_names: None) -> str:
    """`Echo` under a name, for the length of one test."""
    register_hyena_filter("echo", Echo)
    return "echo"


def test_a_registered_filter_is_used_by_its_name(registered: str) -> None:
    """With featurizer and gates at one, H of order 1 is the filter plus the skip."""
    config = small_config("H", hyena_filter=registered, hyena_order=1)
    layer, x = small_mixer(config), draw(20, 1, 8)
    assert isinstance(layer, HyenaOperator)
    assert type(layer.filters[0]) is Echo
    v = draw(8, 1, 20, seed=2)
    tap, skip = layer.filters[0].tap[:, :, None], layer.skip[:, :1, None]
    expected = skip * v
    expected[:, :, 3:] += tap * v[:, :, :-3]
    found = layer.mix((torch.ones_like(v), v), (v[..., :0],) * 2, Span.alone(20))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    layer(x).sum().backward()
    gradient = layer.filters[0].tap.grad
    assert gradient is not None and gradient.abs().min() > 0


def test_a_model_of_a_registered_filter_is_saved_by_its_name(registered: str, tmp_path) -> None:
    model = HyenaGLT(small_config("GH", hyena_filter=registered))
    model.save_pretrained(tmp_path)
    again = HyenaGLT.from_pretrained(tmp_path)
    assert again.config == model.config
    assert type(again.blocks[0].mixer.filters[0]) is Echo
    names.HYENA_FILTERS.remove("echo")
    with pytest.raises(UserError, match=r"config.json: .*hyena_filter='echo' is unknown; did you"):
        HyenaGLT.from_pretrained(tmp_path)


def test_a_model_of_a_registered_filter_is_not_exported_without_its_code(
    registered: str, tmp_path
) -> None:
    model = HyenaGLT(small_config("H", hyena_filter=registered))
    with pytest.raises(UserError, match=r"'echo' is registered by a program, .* implicit and gen"):
        export_huggingface(model.config, model.stored(), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_names_are_registered_once_and_for_filters_only(registered: str) -> None:
    register_hyena_filter("echo", Echo)  # a module that is imported twice
    with pytest.raises(UserError, match=r"'echo' is registered already .*Echo.*another name"):
        register_hyena_filter("echo", GenomicHyenaFilter)
    with pytest.raises(UserError, match="'implicit' is registered already"):
        register_hyena_filter("implicit", Echo)
    with pytest.raises(UserError, match=r"registered as 'plain' is .*Linear.*; make a LongFilter"):
        register_hyena_filter("plain", torch.nn.Linear)  # type: ignore[arg-type]
    assert names.HYENA_FILTERS == ["implicit", "genomic", "echo"]


def test_built_in_names_have_their_classes() -> None:
    assert filters.filter_class("implicit") is HyenaFilter
    assert filters.filter_class("genomic") is GenomicHyenaFilter
    assert list(names.BUILT_IN_FILTERS) == list(filters._CLASSES)[::-1]
