"""What is given to a model is checked before it runs: shapes, names and lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import small_config, small_model
from tests.oracles.merged_models import dna

IDS = dna(2, 64)
PATTERNS = ["SG", "S(G)", "(S)A"]


def model_of(pattern: str, **changes: object) -> HyenaGLT:
    """Windows of 16 bytes, so that many lengths are padded."""
    return small_model(small_config(pattern, window=16, **changes)).eval()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(2, 57), (2, 63), (2, 65), (2, 128), (1, 64), (64,), (2, 1, 64)])
@pytest.mark.parametrize("name", ["conservation", "boundaries", "type"])
def test_tracks_have_a_number_for_each_byte(
    pattern: str, name: str, shape: tuple[int, ...]
) -> None:
    found = refusal(lambda: model_of(pattern)(IDS, tracks={name: torch.zeros(shape)}))
    assert f"the track {name!r} has shape {list(shape)}, input_ids [2, 64]" in found


@pytest.mark.parametrize("shape", [(3, 72), (2, 72), (2, 63), (1, 64), (64,), (1, 1)])
def test_so_have_documents_labels_targets_and_weights(shape: tuple[int, ...]) -> None:
    given = torch.zeros(shape, dtype=torch.int64)
    for pattern in PATTERNS:
        model = model_of(pattern)
        calls: dict[str, Callable[[], object]] = {
            "document_ids": lambda m=model: m(IDS, document_ids=given),  # type: ignore[misc]
            "labels": lambda m=model: m(IDS, labels=given),  # type: ignore[misc]
            "targets": lambda m=model: m.token_losses(IDS, given),  # type: ignore[misc]
            "weights": lambda m=model: m.weighted_losses(IDS, IDS, given),  # type: ignore[misc]
        }
        for name, call in calls.items():
            expected = f"{name} has shape {list(shape)}, input_ids [2, 64]; give one number"
            assert expected in refusal(call)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("ids", [IDS[:, :0], IDS[:0], IDS[0], IDS[None]])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_are_rows_of_at_least_one_byte(pattern: str, ids: Tensor, causal: bool) -> None:
    model = model_of(pattern, causal=causal)
    for call in (lambda: model(ids), lambda: model.hidden(ids), lambda: model(ids, labels=ids)):
        assert f"input_ids has shape {list(ids.shape)}; give [rows, bytes]" in refusal(call)
    assert model(IDS[:1, :16]).logits.isfinite().all()


def test_tracks_that_nothing_reads_are_named() -> None:
    known = "boundaries, conservation or type"
    for pattern in PATTERNS:
        found = refusal(lambda p=pattern: model_of(p)(IDS, tracks={"conserved": IDS}))  # type: ignore[misc]
        assert "'conserved'" in found and known in found
    tracks = {"boundaries": IDS, "conservation": torch.zeros(2, 64), "type": IDS * 0}
    assert model_of("(S)A")(IDS, tracks=tracks).logits.shape == (2, 64, 256)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pattern", ["SH", "G", "S(H)0.75"])
def test_no_sequence_is_longer_than_the_filters(pattern: str, causal: bool) -> None:
    """In bytes, whatever is merged, as where a run is configured."""
    model = model_of(pattern, causal=causal, max_sequence_length=32)
    found = refusal(lambda: model(dna(1, 48)))
    assert "48 bytes exceeds model.max_sequence_length=32" in found
    assert "exceeds" in refusal(lambda: model.token_losses(dna(1, 48), dna(1, 48)))
    assert model(dna(1, 32)).logits.shape == (1, 32, 256)


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("SMLAW", {}),
        ("H", {"hyena_filter_size": 16}),
        ("G", {"hyena_filter": "genomic", "hyena_filter_size": 16, "hidden_size": 16}),
    ],
)
def test_filters_that_end_bind_no_length(pattern: str, changes: dict[str, object]) -> None:
    """What lies before the filters' reach is not seen, and all within it is."""
    model = model_of(pattern, max_sequence_length=32, **changes)
    ids = dna(1, 80)
    whole = model(ids).logits
    assert whole.shape == (1, 80, 256) and whole.isfinite().all()
    prefix = model(ids[:, :30]).logits
    torch.testing.assert_close(whole[:, :30], prefix, rtol=1e-10, atol=1e-10)
