"""Entropy of a model's next byte along a sequence, from which patches are made.

    H_t = -sum_v P(v | bytes up to t) ln P(v | bytes up to t)      nats

after each byte t (Pagnoni et al., Byte Latent Transformer, arXiv:2412.09871). A causal model sees
windows that overlap, as in `scoring`: each position but those at the sequence's start has at least
`context` bytes, itself included, in the window that scores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megatron_hyena.data.alphabet import PAD, Bases
from megatron_hyena.data.tracks import Values, unknown_values

Reader = Callable[[int, int], Values]
"""Values [end - start] of a track at bases [start, end) of the sequence."""


@torch.no_grad()
def next_byte_entropy(
    logits: Callable[[Tensor, dict[str, Tensor]], Tensor],
    read: Callable[[int, int], Bases],
    total: int,
    length: int,
    context: int,
    *,
    tracks: Mapping[str, Reader] = MappingProxyType({}),
    batch_size: int = 1,
    watch: Callable[[int], object] = lambda count: None,
) -> npt.NDArray[np.float32]:
    """H_t in nats, float32 [total], after each of `total` ≥ 1 bytes of one sequence.

    Args:
        logits: a causal model, (byte values int64 [B, L], tracks [B, L] by name) -> [B, L, V].
        read: bytes [start, end) of the sequence, uint8.
        length: L, bytes of a window; a shorter sequence is one window of its own length.
        context: 1 to `length`; L + 1 - `context` is the distance of windows.
        tracks: what the model reads beside the bytes.
        batch_size: windows at once.
        watch: is told the positions that each pass scored.
    """
    if not 1 <= context <= length:
        raise ValueError(f"a context of {context} in windows of {length}")
    entropy = np.full(total, np.nan, dtype=np.float32)
    length = min(length, total)
    context = min(context, length)
    starts = range(0, max(1, total - context + 1), length + 1 - context)
    for first in range(0, len(starts), batch_size):
        some = starts[first : first + batch_size]
        spans = [(start, min(total, start + length)) for start in some]
        content = _stacked([read(*span) for span in spans], length, PAD)
        beside = {name: _stacked([one(*s) for s in spans], length) for name, one in tracks.items()}
        found = _entropy(logits(content.long(), beside))
        done = 0
        for row, (start, end) in enumerate(spans):
            begun = start + (context - 1 if start else 0)
            entropy[begun:end] = found[row, begun - start : end - start]
            done += end - begun
        watch(done)
    return entropy


def _stacked(rows: list[Values], length: int, padding: int | None = None) -> Tensor:
    """Rows [n ≤ length] as [B, length], filled up with `padding`; None for what says nothing."""
    stacked = np.stack([unknown_values(rows[0].dtype, length)] * len(rows))
    if padding is not None:
        stacked[:] = padding
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(stacked)


def _entropy(logits_BLV: Tensor) -> npt.NDArray[np.float32]:
    log_p = torch.log_softmax(logits_BLV.float(), dim=-1)
    found: npt.NDArray[np.float32] = -(log_p.exp() * log_p).sum(-1).cpu().numpy()
    return found
