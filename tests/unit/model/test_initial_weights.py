"""First weights are a function of (seed, name) alone."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.layers.parameter import Cut, cut_of, cut_parameter, initialise, normal
from megatron_hyena.layers.provider import DenseProvider
from tests.oracles.drawing import small_config


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    config = small_config("SMLHGAW")
    torch.manual_seed(1)
    first = parameters(HyenaGLT(config, seed=5))
    torch.manual_seed(2)
    torch.randn(1000)
    HyenaGLT(small_config("AAA"), seed=9)
    second = parameters(HyenaGLT(config, seed=5))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights() -> None:
    first, second = (parameters(HyenaGLT(small_config("SA"), seed=s)) for s in (0, 1))
    drawn = [n for n in first if first[n].std() > 0]
    assert len(drawn) > 5
    assert not any(torch.equal(first[name], second[name]) for name in drawn)


def test_building_draws_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    HyenaGLT(small_config("SMLHGAW"))
    assert torch.equal(before, torch.get_rng_state())


def test_a_block_starts_the_same_in_a_longer_pattern() -> None:
    """Only the matrices that write to the residual stream are scaled by the depth."""
    short, long = HyenaGLT(small_config("SA")), HyenaGLT(small_config("SALM"))
    for (name, one), other in zip(
        short.blocks[0].named_parameters(), long.blocks[0].parameters(), strict=True
    ):
        factor = math.sqrt(2) if name.endswith("output") else 1.0
        torch.testing.assert_close(one, factor * other, msg=name)


def test_no_two_drawn_parameters_are_copies() -> None:
    model = HyenaGLT(small_config("[SMLHAW]2", tie_embeddings=False))
    drawn = [p.flatten()[:8] for p in model.parameters() if p.std() > 0 and p.numel() >= 8]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert not torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_any_number_of_ranks_join_to_the_same_parameter(size: int) -> None:
    whole = parameters(HyenaGLT(small_config("S"), seed=1))
    for cut in (Cut((8, 6), normal(1.0), dim=0), Cut((8, 12), normal(1.0), dim=0, blocks=2)):
        full = torch.arange(float(math.prod(cut.shape))).view(cut.shape)
        parts = [cut.take(full, r, size) for r in range(size)]
        assert all(tuple(p.shape) == cut.local_shape(size) for p in parts)
        assert torch.equal(cut.join(parts), full)
    assert whole["blocks.0.mixer.projection"].shape == (24, 8)


def test_a_fused_pair_is_cut_block_by_block() -> None:
    cut = Cut((8, 1), normal(1.0), dim=0, blocks=2)
    full = torch.arange(8.0)[:, None]
    assert cut.take(full, 0, 2).flatten().tolist() == [0, 1, 4, 5]
    assert cut.take(full, 1, 2).flatten().tolist() == [2, 3, 6, 7]


def test_every_rank_of_a_layout_draws_its_part_of_the_dense_weights() -> None:
    class Share(DenseProvider):
        """A provider in name only: the place of one rank."""

        def __init__(self, rank: int, size: int) -> None:
            self.rank, self.size = rank, size

    config = small_config("SMLHGAW", hyena_output_gate=True)
    dense = parameters(HyenaGLT(config, seed=4))
    shares = [HyenaGLT(config, Share(r, 2), seed=4) for r in range(2)]
    for name, full in dense.items():
        parts = [dict(s.named_parameters())[name] for s in shares]
        assert torch.equal(cut_of(parts[0]).join([p.detach() for p in parts]), full), name


def test_fresh_model_predicts_about_evenly() -> None:
    model = HyenaGLT(HyenaGLTConfig(pattern="SMLA", hidden_size=64, num_heads=4))
    ids = torch.randint(0, 256, (1, 200), generator=torch.Generator().manual_seed(0))
    assert model(ids, ids).loss.item() == pytest.approx(math.log(256), abs=0.05)


def test_initialise_needs_no_particular_order_of_modules() -> None:
    class Pair(torch.nn.Module):
        def __init__(self, order: str) -> None:
            super().__init__()
            for name in order:
                self.register_parameter(name, cut_parameter(Cut((4,), normal(1.0)), 1))

    one, other = Pair("ab"), Pair("ba")
    for pair in (one, other):
        initialise(pair, 0, 0, 1)
    first, second = parameters(one), parameters(other)
    assert torch.equal(first["a"], second["a"])
    assert torch.equal(first["b"], second["b"])
    assert not torch.equal(first["a"], first["b"])
