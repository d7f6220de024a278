"""How much each position counts in the ratio loss of merging. B rows, L bytes."""

from __future__ import annotations

from torch import Tensor


def ratio_weights(weights_BL: Tensor, input_ids: Tensor, pad: int | None, causal: bool) -> Tensor:
    """Weights [B, L] of the ratio loss, with the sum of each row's weights of the loss.

    A causal model is asked for nearly every byte, so both losses have one mean. Of others, the
    bytes that are asked for are hidden and open chunks whatever the router says; there each row's
    weight is spread evenly over all its bytes but padding. The loss is then a mean of means of
    rows, divided by the same sum of weights, and adds up over micro-batches and ranks, which all
    know whole rows.

    Args:
        weights_BL: of the loss.
        input_ids: bytes, int64 [B, L].
        pad: the byte that does not count; None for none.
        causal: whether the model is.
    """
    if causal:
        return weights_BL
    counted = (input_ids != pad if pad is not None else input_ids >= 0).to(weights_BL.dtype)
    per_row = weights_BL.sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
    return per_row * counted
