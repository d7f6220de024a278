"""What merging carries from one rank's slice of the stream into the next: small vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_hyena.layers.provider import Context
from megatron_hyena.ops.merging import decay, scan


def shifted(x_LBH: Tensor, stream: Context) -> Tensor:
    """Each position's predecessor, [L, B, h] -> the same; zeros before the sequence's first."""
    before = stream.halo(x_LBH, 1, dim=0).wait()
    return torch.cat([before, x_LBH[:-1]])


def scan_across(keep_TB: Tensor, x_TBH: Tensor, stream: Context) -> Tensor:
    """`ops.merging.scan` over the slices of all ranks, in order.

    Each rank scans its own from zero; what the ranks before leave behind is added, decayed. Of each
    rank (h + 1) B numbers are fetched, the last of which is what it leaves of what it was handed.
    """
    own = scan(keep_TB, x_TBH)
    if stream.alone:
        return own
    left = decay(keep_TB)

    def step(carry: Tensor, end: Tensor, _: int) -> Tensor:
        return end + end[:, -1:] * carry

    carry = stream.carry(torch.cat([own[-1], left[-1][:, None]], dim=1), step).wait()
    return own + left[..., None] * carry[:, :-1]
