"""Sequences read in pieces, byte by byte and in chunks of any size, are sequences read whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.stage import Merge
from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.model.stream import Piece, Stream, in_pieces
from tests.oracles.drawing import draw, open_branches, small_config, small_model
from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    assert_lively,
    dna,
    lively_model,
    merged_config,
    record,
    tracks_for,
)

LENGTH = 43
MIXED = [1] * 9 + [31, 2, 1] + [7] * 6
"""Bytes a piece: one after the other past a window of 8; several windows, ending inside one."""
PLAIN: dict[str, dict[str, Any]] = {
    **{sign: {} for sign in "SMLHGAW"},
    "SMLHGAW": {"hyena_order": 3, "hyena_output_gate": True, "ffn_hidden_size": 0},
    "HH": {"hyena_filter_size": 9, "use_fft_conv": False},
    "SLWA": {"li_poles": "complex", "projection_bias": True, "se_skip": True, "rope_scaling": 3.0},
}
FIXED = {"merge_ratio", "window"}
"""With one of these a kind says itself how many slots there are."""


def joined(pieces: list[Piece]) -> Piece:
    logits = torch.cat([piece.logits for piece in pieces], dim=1)
    return Piece(logits, torch.cat([piece.last_hidden_state for piece in pieces], dim=1))


def difference(found: Piece, model: HyenaGLT, ids: Tensor, tracks: Any = None) -> float:
    """The largest, from the model's outputs for the whole of `ids`."""
    with torch.no_grad():
        whole = model(ids, tracks=tracks)
    assert found.logits.shape == whole.logits.shape
    hidden = (found.last_hidden_state - whole.last_hidden_state).abs().max()
    return max(float((found.logits - whole.logits).abs().max()), float(hidden))


@pytest.mark.parametrize("size", [1, 7, 31])
@pytest.mark.parametrize("pattern", PLAIN)
def test_models_without_merging(pattern: str, size: int) -> None:
    model = small_model(small_config(pattern, mr_filter_length=24, **PLAIN[pattern])).eval()
    open_branches(model)
    scores = draw(2, LENGTH)
    ids, tracks = dna(2, LENGTH), {"conservation": scores.masked_fill(scores > 1, float("nan"))}
    found = joined(list(in_pieces(model, ids, size, tracks)))
    assert difference(found, model, ids, tracks) < 1e-11


def model_of(kind: str) -> HyenaGLT:
    changes = dict(KINDS[kind])
    if not FIXED & changes.keys() and changes.get("merger") != "static":
        changes["slots"] = 6
    pattern = "S(M)S" if kind == "adaptive kmer" else NESTED
    return lively_model(merged_config(pattern, **changes), dna(2, 96))


def same_as_whole(model: HyenaGLT, sizes: int | Sequence[int], length: int) -> list[list[Merge]]:
    """Feeds bytes in pieces of these sizes; what each stage decided in every pass."""
    sizes = [sizes] * length if isinstance(sizes, int) else sizes
    ids = dna(2, length)
    tracks = tracks_for(model.config, ids)
    with torch.no_grad():
        assert_lively(model(ids, tracks=tracks))
    stream, found = Stream(model), []
    notes = record(stream._model)
    for start, stop in pairwise(min(n, length) for n in accumulate(sizes, initial=0)):
        if start < stop:
            part = {name: track[:, start:stop] for name, track in (tracks or {}).items()}
            found.append(stream.feed(ids[:, start:stop], part))
    assert stream.length == length
    assert difference(joined(found), model, ids, tracks) < 1e-11
    return [[note.merge for note in notes[number]] for number in range(len(model.stages))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_merge(kind: str) -> None:
    same_as_whole(model_of(kind), MIXED, 83 if kind == "adaptive kmer" else LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 64, 83])
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_any_size(kind: str, size: int) -> None:
    same_as_whole(model_of(kind), size, 83)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 5, 31])
@pytest.mark.parametrize("pattern", ["S(SMLA)S", "L(WL(AL)W)L", "(H)(G)", "(S)(A)0.7A"])
def test_merged_patterns(pattern: str, size: int) -> None:
    """Openings too are those of the whole, and budgets end in some windows."""
    model = lively_model(merged_config(pattern, slots=4), dna(2, 96))
    ids = dna(2, LENGTH)
    with torch.no_grad():
        whole = model(ids).merges[0]
    decided: dict[int, Tensor] = {}
    for merge in same_as_whole(model, size, LENGTH)[0]:
        places = merge.below.place_LB.view_as(merge.chunks.opens_nWB)[:, 0, 0]
        decided |= dict(zip(places.tolist(), merge.chunks.opens_nWB, strict=True))
    assert list(decided) == list(range(0, LENGTH, 8))
    last_whole = LENGTH // 8
    for window, opens in enumerate(whole.chunks.opens_nWB[:last_whole]):
        assert torch.equal(decided[8 * window], opens)
    assert whole.chunks.filled_nKB.all(1).any()


def test_a_fork_goes_on_by_itself() -> None:
    """Two ends of one beginning, which is read once."""
    model = model_of("wcc")
    start, ends = dna(2, 21), [dna(2, 12, seed=seed) for seed in (1, 2)]
    stream = Stream(model)
    beginning = stream.feed(start)
    streams = [stream, stream.fork()]
    for end, branch in zip(ends, streams, strict=True):
        found = joined([beginning, branch.feed(end[:, :5]), branch.feed(end[:, 5:])])
        assert difference(found, model, torch.cat([start, end], dim=1)) < 1e-11


def test_what_is_remembered_grows_only_with_attention_and_long_filters() -> None:
    sizes = {}
    for pattern in ("SMLW", "S(SMLW)S", "A", "H"):
        model = lively_model(merged_config(pattern, max_sequence_length=704), dna(2, 96))
        stream = Stream(model)
        stream.feed(dna(2, 64))
        first = stream.memory_bytes
        stream.feed(dna(2, 640))
        sizes[pattern] = stream.memory_bytes / first
    assert sizes["SMLW"] == 1
    assert sizes["S(SMLW)S"] < 3  # four bytes for the place of each slot
    assert sizes["A"] == 11
    assert 10 < sizes["H"] < 11  # the featurizer's two positions stay two


def test_weights_are_shared_and_training_goes_on() -> None:
    model = small_model(small_config("SA"))
    stream, ids = Stream(model), dna(2, 9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert difference(stream.feed(ids), model.eval(), ids) < 1e-11
    model.train()(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_cannot_be_fed_is_refused() -> None:
    both_ways = small_model(small_config("S", causal=False))
    with pytest.raises(UserError, match=r"model\.causal is false.*train with model\.causal=true"):
        Stream(both_ways)
    stream = Stream(small_model(small_config("S")))
    stream.feed(dna(2, 5))
    with pytest.raises(UserError, match="has 3 rows, the ones before had 2; give the same"):
        stream.feed(dna(3, 4))
    with pytest.raises(UserError, match=r"shape \[2, 0\]; give \[rows, bytes\], at least one"):
        stream.feed(dna(2, 0))
    with pytest.raises(UserError, match=r"has the tracks \['type'\], the ones before had \[\]"):
        stream.feed(dna(2, 4), {"type": torch.zeros(2, 4, dtype=torch.int64)})
    with pytest.raises(UserError, match=r"'type' has shape \[2, 3\], input_ids \[2, 4\]"):
        stream.feed(dna(2, 4), {"type": torch.zeros(2, 3, dtype=torch.int64)})
    with pytest.raises(UserError, match="pieces of 0 bytes; give a size from 1"):
        next(in_pieces(small_model(small_config("S")), dna(1, 4), 0))
    assert stream.length == 5


@pytest.mark.parametrize("pattern", ["SH", "(G)"])
def test_no_more_is_fed_than_the_filters_are_made_for(pattern: str) -> None:
    """In bytes, whatever is merged, as where a run is configured; all that was fed counts."""
    model = small_model(small_config(pattern, max_sequence_length=64, window=8))
    stream = Stream(model)
    stream.feed(dna(2, 60))
    with pytest.raises(UserError, match=r"65 bytes exceeds model\.max_sequence_length=64, which"):
        stream.feed(dna(2, 5))
    assert stream.feed(dna(2, 4)).logits.shape == (2, 4, 256)
    short = small_config(pattern, max_sequence_length=64, window=8, hyena_filter_size=16)
    long = Stream(small_model(short))
    long.feed(dna(2, 60))
    assert long.feed(dna(2, 60)).logits.shape == (2, 60, 256)
