"""Chunked processing is the whole pass, whatever the chunk size."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena import combine_chunk_outputs, process_long_sequence_efficiently
from megatron_hyena.errors import UserError
from megatron_hyena.model.stream import Piece
from tests.oracles.drawing import draw, small_config, small_model
from tests.oracles.merged_models import dna, lively_model, merged_config


@pytest.mark.parametrize(
    ("chunk", "length"),
    [
        (1, 37),
        *((chunk, 301) for chunk in (50, 128, 301, 2048)),
        pytest.param(1, 301, marks=pytest.mark.slow),
    ],
)
def test_any_chunk_size_is_the_whole(chunk: int, length: int) -> None:
    model, ids = lively_model(merged_config("S(SMLA)S", slots=5), dna(2, 96)), dna(1, length)
    with torch.no_grad():
        whole = model(ids)
    for given in (ids, ids[0]):
        found = process_long_sequence_efficiently(model, given, chunk)
        assert found.logits.shape == (1, length, 256)
        assert (found.logits - whole.logits).abs().max() < 1e-11
        assert (found.last_hidden_state - whole.last_hidden_state).abs().max() < 1e-11


def test_chunks_are_joined_without_what_they_share() -> None:
    logits, states = draw(2, 10, 5), draw(2, 10, 3)
    for overlap, starts in ((0, (0, 4, 8)), (2, (0, 2, 4, 6))):
        pieces = [Piece(logits[:, s : s + 4], states[:, s : s + 4]) for s in starts]
        found = combine_chunk_outputs(pieces, overlap)
        assert torch.equal(found.logits, logits)
        assert torch.equal(found.last_hidden_state, states)


def test_what_cannot_be_joined_is_refused() -> None:
    piece = Piece(draw(1, 4, 5), draw(1, 4, 3))
    with pytest.raises(UserError, match="no outputs"):
        combine_chunk_outputs([])
    with pytest.raises(UserError, match=r"overlap=4 but a chunk has 4 positions.*from 0 to 3"):
        combine_chunk_outputs([piece, piece], 4)
    with pytest.raises(UserError, match=r"overlap=-1 "):
        combine_chunk_outputs([piece, piece], -1)
    with pytest.raises(UserError, match="pieces of 0 bytes"):
        process_long_sequence_efficiently(small_model(small_config("S")), dna(1, 4), 0)
