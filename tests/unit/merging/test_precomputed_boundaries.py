"""Chunks from a track: what the track may be, and what is said when there is none."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.rate import Rate
from tests.oracles.merged_models import NESTED, boundaries, dna, lively_model, merged_config

CONFIG = merged_config(NESTED, merger="precomputed", slots=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
@pytest.mark.parametrize("length", [64, 61])
def test_a_track_of_yes_and_no_opens_chunks_of_the_outer_stage(
    dtype: torch.dtype, length: int
) -> None:
    """Whatever numbers hold it, and where the sequence ends inside a window."""
    ids = dna(2, length)
    track = boundaries(2, length) > 0
    model = lively_model(CONFIG, dna(2, 64))
    with torch.no_grad():
        output = model(ids, tracks={"boundaries": track.to(dtype)})
    assert output.logits.shape[:2] == (2, length)
    opens = output.merges[0].chunks.opens_nWB.flatten(0, 1).t()[:, :length]
    for row in range(2):
        for first in range(0, length, 8):
            inside = range(first, min(first + 8, length))
            wanted = [t for t in inside if t == first or track[row, t]]
            assert [t for t in inside if opens[row, t]] == wanted[:6]


def test_levels_of_a_track_open_chunks_of_that_many_stages() -> None:
    """2 opens one in the inner stage too; there it counts at the openings of the outer one."""
    model, ids, track = lively_model(CONFIG, dna(2, 64)), dna(2, 64), boundaries(2, 64)
    with torch.no_grad():
        output = model(ids, tracks={"boundaries": track})
    outer, inner = output.merges
    opened = outer.chunks.at_openings(track.t().contiguous(), 0)
    assert torch.equal(inner.below.tracks["boundaries"], opened)
    opens, present = inner.chunks.opens_nWB, inner.below.present.view_as(inner.chunks.opens_nWB)
    level = opened.view_as(opens)
    assert (opens & (level == 2)).any()
    first = present.cumsum(1) == 1
    assert not (opens & (level < 2) & ~first).any()
    assert opens[present & first].all()


def test_without_the_track_the_way_to_make_it_is_named() -> None:
    model = lively_model(CONFIG, dna(2, 64))
    with pytest.raises(UserError) as caught:
        model(dna(1, 64), tracks={"conservation": torch.zeros(1, 64)})
    message = str(caught.value)
    assert "`boundaries`" in message
    assert "merger=precomputed" in message
    assert "\n" not in message


def test_openings_beyond_the_budget_count_as_dropped() -> None:
    config = HyenaGLTConfig(pattern="(L)", hidden_size=8, merger="precomputed", window=8, slots=4)
    model = HyenaGLT(config).train()
    ids = torch.randint(2, 250, (2, 32), generator=torch.Generator().manual_seed(0))
    model(ids, tracks={"boundaries": torch.ones_like(ids)})
    rate = model.stages[0].rate
    assert isinstance(rate, Rate)
    figures = rate.update(rate.take())
    assert figures["kept"] == 4 / 8
    assert figures["dropped"] == 4 / 7  # anchors had to open


def test_true_and_false_are_no_levels_of_nested_stages() -> None:
    config = HyenaGLTConfig(pattern="((L))", hidden_size=8, merger="precomputed", window=8, slots=8)
    ids = torch.randint(2, 250, (1, 64), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="but the stages nest"):
        HyenaGLT(config)(ids, tracks={"boundaries": ids > 100})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"merger": "static", "adaptive": True}, "model.merger=static has not"),
        ({"merger": "precomputed", "adaptive": True}, "model.merger=precomputed has not"),
        ({"merger": "static", "slots": 9}, "model.slots=9 has no meaning"),
        ({"merge_ratio": 0.99, "window": 8}, "0.08 chunks per window"),
        ({"gamma": float("nan")}, "model.gamma=nan must be 0 or more"),
    ],
)
def test_what_a_merger_would_ignore_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        HyenaGLTConfig.from_seed(pattern="(L)", hidden_size=8, **fields)
    assert sentence in str(caught.value)
