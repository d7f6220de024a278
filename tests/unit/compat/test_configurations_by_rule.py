"""Rules of the tutorial and the guide's formula: their numbers, and where they are mended."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from megatron_hyena import (
    HybridAttentionHyenaConfig,
    HyenaGLT,
    HyenaGLTConfig,
    create_hybrid_model,
    estimate_memory_usage,
    optimize_for_sequence_length,
    recompute_for_sequence_length,
)
from megatron_hyena.errors import UserError
from tests.oracles.drawing import disturb, draw_bytes


@pytest.mark.parametrize(
    ("length", "taps", "fft", "recompute"),
    [
        (64, 32, False, "none"),
        (512, 32, False, "none"),
        (513, 32, True, "none"),
        (1024, 32, True, "none"),
        (4096, 64, True, "none"),
        (4097, 64, True, "block"),
        (8192, 128, True, "block"),
        (16384, 128, True, "block"),
    ],
)
def test_rule_of_lengths(length: int, taps: int, fft: bool, recompute: str) -> None:
    config = optimize_for_sequence_length(length)
    assert (config.hyena_filter_size, config.use_fft_conv) == (taps, fft)
    assert (config.vocab_size, config.hidden_size, config.hyena_order) == (4, 768, 2)
    assert config.max_sequence_length == length
    assert recompute_for_sequence_length(length) == recompute


@pytest.mark.parametrize("depth", [1, 2, 5, 12])
def test_few_taps_do_not_limit_what_the_model_sees(depth: int) -> None:
    """The last byte's state depends on the first byte, 600 before."""
    config = optimize_for_sequence_length(600, num_layers=depth, hidden_size=16)
    assert len(config.signs) == depth
    assert config.signs[-1] == "L"
    assert config.signs.count("L") == -(-depth // 4)
    model = HyenaGLT(config).double()
    disturb(model)
    ids = draw_bytes(1, 600) % 4
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % 4
    states = [model(x).last_hidden_state[0, -1] for x in (ids, other)]
    assert (states[0] - states[1]).abs().max().item() > 1e-9


def test_fields_replace_those_of_the_rule() -> None:
    config = optimize_for_sequence_length(4096, pattern="[HA]2", vocab_size=256, d_model=64)
    assert (config.pattern, config.vocab_size, config.hidden_size) == ("[HA]2", 256, 64)
    assert optimize_for_sequence_length(4096, use_hyena=True, num_layers=6).pattern == "[H]6"
    assert optimize_for_sequence_length(4096).pattern == "[HHHL]3"
    with pytest.raises(UserError, match="target_length=31"):
        optimize_for_sequence_length(31)
    with pytest.raises(UserError, match="hiden_size"):
        optimize_for_sequence_length(4096, hiden_size=3)


def test_hybrid_configuration() -> None:
    config = HybridAttentionHyenaConfig(
        vocab_size=4, hidden_size=768, num_layers=12, use_hyena=True, use_attention=True
    )
    assert config.pattern == "[WHH]4"
    assert config.attention_window == 512
    assert isinstance(config, HyenaGLTConfig)
    assert replace(config, hidden_size=384).pattern == "[WHH]4"


@pytest.mark.parametrize(
    ("fields", "pattern", "window"),
    [
        ({}, "[WHH]4", 512),
        ({"num_layers": 7}, "WHHWHHW", 512),
        ({"n_layers": 6}, "[WHH]2", 512),
        ({"attention_layers": [5], "num_layers": 6}, "HHHHHW", 512),
        ({"hyena_layers": [0, 1], "num_layers": 3}, "HHW", 512),
        ({"use_sparse_attention": False, "num_layers": 3}, "AHH", 512),
        ({"attention_window_size": 64, "num_layers": 3}, "WHH", 64),
        ({"attention_window": 65, "num_layers": 3}, "WHH", 65),
        ({"pattern": "[SA]2"}, "[SA]2", 512),
    ],
)
def test_a_hybrids_fields_are_kept(fields: dict, pattern: str, window: int) -> None:
    """The sketch set its own lists after the user's, for 12 layers only."""
    config = HybridAttentionHyenaConfig(**fields)
    assert (config.pattern, config.attention_window) == (pattern, window)


def test_hybrid_model(tmp_path) -> None:
    model = create_hybrid_model(num_layers=3, hidden_size=16, num_heads=2, attention_window=8)
    ids = draw_bytes(1, 20)
    assert model(ids).logits.shape == (1, 20, 256)
    model.save_pretrained(tmp_path)
    again = HyenaGLT.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(UserError, match="contradict"):
        create_hybrid_model(num_layers=3, n_layers=4)


def test_the_guides_estimate_has_the_guides_numbers() -> None:
    guide = SimpleNamespace(d_model=768, n_layers=12, merge_ratio=0.5)
    found = estimate_memory_usage(guide, 1, 8192)
    assert found["standard_memory_gb"] == (8192 * 768 * 4 + 8192 * 768 * 8 * 12) / 2**30
    assert found["merged_memory_gb"] == (8192 * 768 * 4 + 4096 * 768 * 8 * 12) / 2**30
    assert round(found["standard_memory_gb"], 3) == 0.586
    assert round(found["merged_memory_gb"], 3) == 0.305
    assert round(found["memory_reduction"], 2) == 0.48
    assert list(found) == ["standard_memory_gb", "merged_memory_gb", "memory_reduction"]


def test_the_guides_merge_ratio_is_the_fraction_kept_and_1_without_one() -> None:
    config = HyenaGLTConfig.from_seed(d_model=768, n_layers=12)
    whole = estimate_memory_usage(config, 2, 1000)
    assert whole["memory_reduction"] == 0.0
    assert whole == estimate_memory_usage(SimpleNamespace(d_model=768, n_layers=12), 2, 1000)
    kept = estimate_memory_usage(config, 2, 1000, merge_ratio=0.25)
    assert kept["memory_reduction"] == pytest.approx(0.75 * 96 / 100)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("[H]12", 1.0),
        ("([H]12)", 0.25),
        ("H([H]10)H", (2 + 10 * 0.25) / 12),
        ("H([H]5(H[H]4)0.5)H", (2 + 5 * 0.25 + 5 * 0.25 * 0.5) / 12),
    ],
)
def test_a_configurations_merge_ratio_is_the_fraction_removed(pattern: str, kept: float) -> None:
    config = HyenaGLTConfig(hidden_size=768, pattern=pattern, merge_ratio=0.75)
    found = estimate_memory_usage(config, 1, 48_000)
    assert found["memory_reduction"] == pytest.approx((1 - kept) * 96 / 100)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: estimate_memory_usage(SimpleNamespace(d_model=3), 1, 8), ("n_layers",)),
        (lambda: estimate_memory_usage(HyenaGLTConfig(), 0, 8), ("batch_size=0",)),
        (lambda: estimate_memory_usage(HyenaGLTConfig(), 1, 8, merge_ratio=1.5), ("1.5",)),
    ],
)
def test_sizes_that_cannot_be_estimated(call, words) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
