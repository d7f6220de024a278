"""What numbers of documents say about padding and about labels. B rows, L bytes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.config.alphabet import PAD
from megatron_hyena.errors import UserError

UNSCORED = -100
"""Label of a position without a target."""


def apart_from_padding(
    ids_BL: Tensor, document_ids: Tensor | None, padded: int, merged: bool
) -> Tensor | None:
    """Numbers of documents [B, L] of a model that is not causal, in which nothing else sees PAD.

    With merged stages, where documents begin with windows, PAD is a byte like others.

    Args:
        ids_BL: bytes, int64, before they are padded.
        document_ids: numbers >= 0 of the documents; None for one per row.
        padded: length to which the model pads.
        merged: whether it has merged stages.
    Raises:
        UserError: the sequences would be padded, with merged stages.
    """
    length = ids_BL.shape[1]
    if merged:
        if padded != length:
            raise UserError(
                f"sequences of {length} bytes would be padded to {padded}, and with "
                "model.causal=false merged stages would see the padding; give sequences of "
                f"{padded} bytes"
            )
        return document_ids
    pads = ids_BL == PAD
    if document_ids is None:
        # A graph of `torch.compile` cannot depend on whether there are any.
        apart = torch.compiler.is_compiling() or padded != length or bool(pads.any())
        return pads.long() if apart else None
    return 2 * document_ids.long() + pads


def next_labels(labels_BL: Tensor, document_ids: Tensor | None) -> Tensor:
    """Each position's target: the label behind it in its document, else `UNSCORED`; [B, L]."""
    shifted = F.pad(labels_BL[:, 1:], (0, 1), value=UNSCORED)
    if document_ids is None:
        return shifted
    foreign = F.pad(document_ids[:, 1:] != document_ids[:, :-1], (0, 1))
    return shifted.masked_fill(foreign, UNSCORED)
