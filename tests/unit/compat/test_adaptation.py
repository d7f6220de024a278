"""Adapting a model to a task: which sizes change, that weights are kept, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megatron_hyena import HyenaGLT, fine_tune_hyena_for_task
from megatron_hyena.compat.adaptation import is_causal
from megatron_hyena.errors import UserError
from tests.oracles.drawing import disturb, draw_bytes, small_config


def trained(pattern: str = "HA", **changes: object) -> HyenaGLT:
    model = HyenaGLT(small_config(pattern, max_sequence_length=1000, **changes))
    disturb(model)
    return model


@pytest.mark.parametrize(
    ("task", "taps", "expected"),
    [
        ("classification", 50, 100),
        ("classification", 128, 256),
        ("classification", 200, 256),
        ("classification", 300, 300),
        ("classification", 0, 0),
        ("generation", 50, 50),
        ("generation", 0, 0),
        ("variant_calling", 128, 64),
        ("variant_calling", 50, 32),
        ("variant_calling", 20, 20),
        ("variant_calling", 0, 500),
    ],
)
def test_sizes_of_filters(task: str, taps: int, expected: int) -> None:
    model = trained(hyena_filter_size=taps)
    adapted = fine_tune_hyena_for_task(model, task)
    assert adapted.config.hyena_filter_size == expected
    assert model.config.hyena_filter_size == taps
    for (name, old), (_, new) in zip(
        model.named_parameters(), adapted.named_parameters(), strict=True
    ):
        assert torch.equal(old, new), name
        assert old.data_ptr() != new.data_ptr()


def test_what_the_filters_covered_before_is_unchanged() -> None:
    """Filters of 8 and of 16 taps begin with the same 8; so the first 8 outputs are equal."""
    model = trained("H", hyena_filter_size=8)
    adapted = fine_tune_hyena_for_task(model, "classification")
    ids = draw_bytes(1, 30)
    before, after = model.double()(ids).logits, adapted.double()(ids).logits
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before[:, 8:], after[:, 8:], rtol=1e-2)


MOTIFS = {"hyena_filter": "genomic", "motifs": ("CG", "CANNTG")}


def test_a_larger_bank_goes_on_with_zeros_and_computes_the_same() -> None:
    model = trained("HA", hyena_filter_size=20, **MOTIFS)
    adapted = fine_tune_hyena_for_task(model, "classification")
    bank = adapted.get_parameter("blocks.0.mixer.filters.1.filters")
    assert bank.shape == (8, 40)
    assert (bank[:, 20:] == 0).all()
    ids = draw_bytes(2, 60)
    before, after = model.double()(ids).logits, adapted.double()(ids).logits
    torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("size", "fewer"), [(0, 64), (100, 50), (40, 32)])
def test_a_smaller_bank_keeps_its_first_taps(size: int, fewer: int) -> None:
    model = trained("HA", hyena_filter_size=size, **MOTIFS)
    adapted = fine_tune_hyena_for_task(model, "variant_calling")
    name = "blocks.0.mixer.filters.0.filters"
    assert torch.equal(adapted.get_parameter(name), model.get_parameter(name)[:, :fewer])
    assert adapted.config.hyena_filter_size == fewer


def test_dtype_mode_and_other_fields() -> None:
    model = trained(hyena_filter_size=50).double().eval()
    adapted = fine_tune_hyena_for_task(model, "classification", attention_window=7)
    assert adapted.config.attention_window == 7
    assert next(adapted.parameters()).dtype == torch.float64
    assert not adapted.training
    assert adapted.train().recomputed == (False, False)
    again = fine_tune_hyena_for_task(model.train(), recompute="H")
    assert again.training
    assert again.recomputed == (True, False)


def test_a_merging_model_keeps_its_controllers_too() -> None:
    model = trained("S(H)S", hyena_filter_size=40)
    buffers = dict(model.named_buffers())
    assert buffers
    for buffer in buffers.values():
        buffer.copy_(torch.full_like(buffer, 0.25))
    adapted = fine_tune_hyena_for_task(model, "variant_calling")
    for name, buffer in adapted.state_dict().items():
        assert torch.equal(buffer, model.state_dict()[name]), name
        assert buffer.dtype == model.state_dict()[name].dtype


class LooksAhead(nn.Module):
    """A mixer that sees the next position too."""

    def forward(self, x: Tensor, span: object = None) -> Tensor:
        return x.roll(-1, 0)


@pytest.mark.parametrize("pattern", ["H", "A", "SMLHAW", "S(HA)S"])
def test_causality_is_told_from_what_the_model_does(pattern: str) -> None:
    for model in (trained(pattern), HyenaGLT(small_config(pattern))):
        model.train()
        assert is_causal(model)
        assert model.training
        model.blocks[-1].mixer = LooksAhead()
        assert not is_causal(model)


def test_a_model_that_sees_what_follows_is_not_made_a_generator() -> None:
    model = trained()
    model.blocks[0].mixer = LooksAhead()
    with pytest.raises(UserError, match="trained causally"):
        fine_tune_hyena_for_task(model, "generation")


def test_causality_never_flips(monkeypatch) -> None:
    """Whatever makes the new model look ahead, the weights were not trained for it."""
    model = trained()
    monkeypatch.setattr(
        "megatron_hyena.compat.adaptation.is_causal", lambda tested: tested is model
    )
    with pytest.raises(UserError, match="attention_window"):
        fine_tune_hyena_for_task(model, "classification", attention_window=3)


@pytest.mark.parametrize(
    ("task", "fields", "words"),
    [
        ("clasification", {}, ("'clasification'", "variant_calling")),
        ("classification", {"hyena_order": 3}, ("blocks.0.mixer", "shape")),
        ("classification", {"pattern": "HAH"}, ("blocks.2", "None")),
        ("classification", {"filter_sise": 3}, ("filter_sise",)),
    ],
)
def test_what_needs_other_weights_is_refused(task: str, fields: dict, words: tuple) -> None:
    with pytest.raises(UserError) as caught:
        fine_tune_hyena_for_task(trained(), task, **fields)
    for word in words:
        assert word in str(caught.value)
