"""The tutorial's chunked processing of long sequences, with the results of the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT, Tracks
from megatron_hyena.model.stream import Piece, in_pieces


def process_long_sequence_efficiently(
    model: HyenaGLT, sequence: Tensor, chunk_size: int = 2048, tracks: Tracks | None = None
) -> Piece:
    """Logits and hidden states of ids [B, L] (or [L]), `chunk_size` bytes at a time.

    Equal to the model's for the whole, whatever the chunk size: each chunk goes on from what is
    remembered of those before, so chunks need no overlap. What is too long for [B, L, V] logits in
    memory is read with `megatron_hyena.model.stream.in_pieces`, one chunk at a time.

    Raises:
        UserError: the model is not causal; no bytes; `chunk_size` is below 1.
    """
    if sequence.dim() == 1:
        sequence = sequence[None]
    return combine_chunk_outputs(list(in_pieces(model, sequence, chunk_size, tracks)))


def combine_chunk_outputs(outputs: Sequence[Piece], overlap: int = 0) -> Piece:
    """Pieces joined along the sequence.

    Args:
        outputs: of consecutive chunks.
        overlap: positions at the start of each but the first that the chunk before has too; they
            are dropped.

    Raises:
        UserError: nothing to combine, or a chunk that is all overlap.
    """
    if not outputs:
        raise UserError("no outputs to combine; give those of at least one chunk")
    shortest = min((piece.logits.shape[1] for piece in outputs[1:]), default=overlap + 1)
    if overlap < 0 or shortest <= overlap:
        raise UserError(
            f"overlap={overlap} but a chunk has {shortest} positions; give an overlap from 0 to "
            f"{shortest - 1}"
        )
    first, rest = outputs[0], outputs[1:]
    logits = [first.logits, *(piece.logits[:, overlap:] for piece in rest)]
    states = [first.last_hidden_state, *(p.last_hidden_state[:, overlap:] for p in rest)]
    return Piece(torch.cat(logits, dim=1), torch.cat(states, dim=1))
