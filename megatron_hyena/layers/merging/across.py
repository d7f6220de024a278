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

    Each rank scans its own from zero; what the ranks before leave behind is added, decayed. One
    all-gather of (h + 1) B numbers.
    """
    own = scan(keep_TB, x_TBH)
    if stream.size == 1:
        return own
    left = decay(keep_TB)
    ends = stream.gather(torch.cat([own[-1], left[-1][:, None]], dim=1)).wait()
    carries = [torch.zeros_like(ends[0, :, :-1])]
    for end in ends[:-1]:
        carries.append(end[:, -1:] * carries[-1] + end[:, :-1])
    # A sum over all ranks, not a choice: each rank's backward has a part in the exchange.
    mine = torch.arange(stream.size, device=ends.device) == stream.rank
    carry = (torch.stack(carries) * mine[:, None, None].to(ends.dtype)).sum(0)
    carry = carry + 0.0 * ends.sum()
    return own + left[..., None] * carry
