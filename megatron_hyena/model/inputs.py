"""Whether what a model is given fits together: shapes and names alone, so no device waits for it.

Padding and cutting over ranks would hide most mistakes. B rows, L bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from megatron_hyena.config.alphabet import LABELS, TRACKS
from megatron_hyena.errors import UserError


def check_inputs(
    input_ids: Tensor, document_ids: Tensor | None, tracks: Mapping[str, Tensor] | None
) -> None:
    """Refuse what is not bytes [B, L], B and L at least 1, with one number beside each.

    Raises:
        UserError: with both shapes, or the names of the tracks that there are.
    """
    if input_ids.dim() != 2 or 0 in input_ids.shape:
        raise UserError(
            f"input_ids has shape {list(input_ids.shape)}; give [rows, bytes], at least one of each"
        )
    if document_ids is not None:
        check_beside("document_ids", document_ids, input_ids)
    for name, track in (tracks or {}).items():
        if name not in (*TRACKS, *LABELS):
            raise UserError(
                f"no model reads a track {name!r}; give {', '.join(TRACKS[:-1])} or {TRACKS[-1]}"
            )
        check_beside(f"the track {name!r}", track, input_ids)


def check_beside(name: str, given: Tensor, input_ids: Tensor) -> None:
    """Refuse `given`, called `name`, unless it has a number for each byte of ids [B, L].

    Raises:
        UserError: with both shapes.
    """
    if given.shape != input_ids.shape:
        raise UserError(
            f"{name} has shape {list(given.shape)}, input_ids {list(input_ids.shape)}; give one "
            "number for each byte"
        )


def check_length(length: int, longest: int | None) -> None:
    """Refuse sequences of more than `longest` bytes (None: any), read whole or in pieces.

    Raises:
        UserError: with both numbers.
    """
    if longest is not None and length > longest:
        raise UserError(
            f"a sequence of {length} bytes exceeds model.max_sequence_length={longest}, which the "
            "filters of H and G are made for; give shorter sequences or raise the latter"
        )
