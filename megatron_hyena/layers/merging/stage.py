"""A merged stage: chunks on entry, positions on exit.

    agg_m = mean of the positions of chunk m,  open_m = x at its first position
    u_m = open_m + W [agg_{m-1}; open_m] + b                  on entry (merge_fn linear)
    s_m = P_m z_m + (1 - P_m) s_{m-1}                         smoothing of the stage's outputs z
    y_t = x_t + W_skip x_t + STE(conf_t) s_{chunk(t)}         on exit

P is the router's probability at the opening, conf_t = p_t where a chunk opens and 1 - p_t elsewhere
(Hwang et al., H-Net, arXiv:2507.07955). agg is that of the chunk before, which is complete, so u_m
depends on nothing behind the chunk's first position: the stage is causal without a delay.
L positions and M slots of this rank's slice of the stream, B rows, h channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.config.merging import StageShape
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.across import scan_across, shifted
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.rate import Rate
from megatron_hyena.layers.merging.router import Router
from megatron_hyena.layers.merging.similarity import replicated
from megatron_hyena.layers.merging.trunk import WIDTH
from megatron_hyena.layers.parameter import constant
from megatron_hyena.layers.provider import Provider
from megatron_hyena.ops.fir import compute_dtype, full_precision
from megatron_hyena.ops.merging import Chunks, admit, even_openings, straight_through

SMALLEST = 1e-4
"""Smoothing gates stay this far from 0 and 1, but for those that are 1: see `Axis.unsmoothed`."""


@dataclass(frozen=True, eq=False)
class Merge:
    """What a stage decided, for its exit and for those who look on.

    Attributes:
        chunks: openings and indices.
        axis: of the slots.
        below: of the positions.
        probability_LB: p; None without a router.
        gate_MB: P; None without smoothing.
        penalty_LB: ratio loss of each position, nats; None without one.
    """

    chunks: Chunks
    axis: Axis
    below: Axis
    probability_LB: Tensor | None = None
    gate_MB: Tensor | None = None
    penalty_LB: Tensor | None = None


class MergedStage(nn.Module):
    """Entry and exit of one stage.

    Args:
        shape: its sizes.
        depth: stages around it.
        config: the model's.
        provider: the layout.
    """

    def __init__(
        self, shape: StageShape, depth: int, config: HyenaGLTConfig, provider: Provider
    ) -> None:
        super().__init__()
        self.shape, self.depth, self.provider = shape, depth, provider
        self.merger, self.smoothing = config.merger, config.smoothing
        learned = config.merger in ("wcc", "hnet")
        self.router = Router(shape, config) if learned else None
        self.counter = None if learned else Rate(shape, config)
        width = config.hidden_size
        self.merge_fn = "select" if config.merger == "hnet" else config.merge_fn
        if self.merge_fn == "linear":
            self.merge_weight = replicated((width, 2 * width), constant(0.0), "matrix")
            self.merge_bias = replicated((width,), constant(0.0), "vector")
        self.skip = replicated((width, width), constant(0.0), "matrix")

    @property
    def rate(self) -> Rate:
        """The stage's counts, and the state of its rate control if it has a router."""
        rate = self.counter if self.router is None else self.router.rate
        assert rate is not None
        return rate

    def merge(self, x_LBH: Tensor, axis: Axis) -> tuple[Tensor, Merge]:
        """Decide, and make the slots' vectors: x [L, B, h] -> u [M, B, h], 0 in empty slots."""
        windows = (-1, self.shape.window)
        present = axis.present
        logits = complexity = None
        if self.router is not None:
            logits, complexity = self.router(x_LBH, axis, self.provider.stream)
            wanted = logits > 0
        else:
            wanted = self._given(axis)
        must = None if self.merger == "static" else axis.protected_LB
        opens, anchors = admit(
            wanted.unflatten(0, windows),
            present.unflatten(0, windows),
            self.shape.slots,
            None if must is None else must.unflatten(0, windows),
        )
        chunks, anchors = Chunks.of(opens, self.shape.slots), anchors.flatten(0, 1)
        if self.training:
            self.rate.observe(wanted, logits, chunks, anchors, axis.counted_LB, complexity)
        merge = Merge(chunks, axis.merged(chunks), axis)
        if logits is not None:
            merge = self._with_probability(merge, logits, anchors)
        return self._vectors(x_LBH, merge), merge

    def _given(self, axis: Axis) -> Tensor:
        """Openings that need no router, bool [L, B]."""
        if self.merger == "static":
            even = even_openings(self.shape.window, self.shape.slots, axis.place_LB.device)
            return even.repeat(len(axis.place_LB) // self.shape.window)[:, None].expand_as(
                axis.place_LB
            )
        if "boundaries" not in axis.tracks:
            raise UserError(
                "model.merger=precomputed reads chunks from the track `boundaries`, which this "
                "input has not; make it with tools.make_patches, or choose merger=wcc"
            )
        levels = axis.tracks["boundaries"]
        if self.depth and levels.dtype == torch.bool:
            raise UserError(
                "the track `boundaries` is of true and false, but the stages nest: give the number "
                "of stages, from outside, in which a chunk opens; tools.make_patches does"
            )
        return levels > self.depth

    def _with_probability(self, merge: Merge, logits_LB: Tensor, anchors_LB: Tensor) -> Merge:
        # A document's first position opens for certain: no gradient from the document before it.
        p = torch.sigmoid(logits_LB).masked_fill(merge.below.begins, 1.0)
        chunks, gate, penalty = merge.chunks, None, None
        if self.smoothing == "ema":
            opening = chunks.openings(p[..., None])[..., 0]
            opening = opening.clamp(SMALLEST, 1 - SMALLEST)
            gate = torch.where(merge.axis.unsmoothed, 1.0, opening)
            gate = gate.masked_fill(~merge.axis.present, 0.0)
        if self.rate.weight:
            free = merge.below.counted_LB & ~anchors_LB
            penalty = self.rate.penalty(p).masked_fill(~free, 0.0)
        return Merge(chunks, merge.axis, merge.below, p, gate, penalty)

    def _vectors(self, x_LBH: Tensor, merge: Merge) -> Tensor:
        """u: see the module."""
        chunks = merge.chunks
        opening = chunks.openings(x_LBH)
        if self.merge_fn == "select":
            return opening
        present = merge.below.present.view_as(chunks.opens_nWB)
        length = chunks.lengths(present).flatten(0, 1)[..., None]
        mean = chunks.sums(merge.below.mask(x_LBH)) / length.clamp(min=1)
        if self.merge_fn == "mean":
            before = self._before(torch.cat([mean, length.to(mean.dtype)], dim=-1), merge)
            size = before[..., -1:]
            return merge.axis.mask((before[..., :-1] * size + opening) / (size + 1))
        before = self._before(mean, merge)
        pair = torch.cat([before, opening], dim=-1)
        weight, bias = self.merge_weight.to(pair.dtype), self.merge_bias.to(pair.dtype)
        learned = F.linear(pair, weight, bias)
        return merge.axis.mask(opening + learned.to(x_LBH.dtype))

    def _before(self, x_MBH: Tensor, merge: Merge) -> Tensor:
        """Of each slot, what the chunk before it has; 0 at the start of a document."""
        chunks, slots = merge.chunks, self.shape.slots
        inside = x_MBH.unflatten(0, (-1, slots))
        last = (chunks.filled_nKB.sum(1, keepdim=True) - 1).clamp(min=0)  # [n, 1, B]
        is_last = torch.arange(slots, device=last.device)[:, None] == last
        ends = (inside * is_last[..., None].to(x_MBH.dtype)).sum(1)
        first = shifted(ends, self.provider.stream)[:, None]
        before = torch.cat([first, inside[:, :-1]], dim=1).flatten(0, 1)
        here = merge.axis.present & ~merge.axis.begins
        return before * here[..., None].to(before.dtype)

    def unmerge(self, z_MBH: Tensor, merge: Merge, x_LBH: Tensor) -> Tensor:
        """The stage's outputs z [M, B, h] at the positions of its input x: [L, B, h]."""
        if merge.gate_MB is not None:
            with full_precision(z_MBH):
                gate = merge.gate_MB
                z = z_MBH.to(compute_dtype(z_MBH))
                z_MBH = scan_across(1 - gate, gate[..., None] * z, self.provider.stream)
        y = merge.chunks.read(z_MBH)
        p = merge.probability_LB
        if p is not None:
            y = straight_through(y, torch.where(merge.chunks.opens_nWB.flatten(0, 1), p, 1 - p))
        skipped = F.linear(x_LBH, self.skip.to(x_LBH.dtype))
        return x_LBH + y.to(x_LBH.dtype) + skipped.to(x_LBH.dtype)

    def spread(self, penalty_MB: Tensor, merge: Merge) -> Tensor:
        """A penalty per slot as one per position, at the openings.

        Its mean over the positions is that over the taken slots where the stage keeps the asked
        fraction of its positions; where it keeps more or fewer, it is that much larger or smaller.
        """
        read = merge.chunks.read(penalty_MB[..., None])[..., 0]
        return read * merge.chunks.opens_nWB.flatten(0, 1) / self.shape.keep


def merging_numbers(config: HyenaGLTConfig) -> tuple[int, int]:
    """Numbers per row that a stage's halos of one position, and its gathers, send of fp32."""
    width, halos, gathers = config.hidden_size, 0, 0
    features = WIDTH if config.router_input == "trunk" else width
    if config.merger in ("wcc", "hnet"):
        mlp = config.merger == "wcc" and config.similarity == "mlp"
        halos += width if mlp else features
        if config.adaptive and config.complexity == "window":
            halos += features
            gathers += features + 1
        if config.adaptive and config.complexity == "global":
            gathers += 2 * (features + 2)  # sums and counts from both sides
        gathers += width + 1 if config.smoothing == "ema" else 0
    if config.merger != "hnet" and config.merge_fn != "select":
        halos += width + (1 if config.merge_fn == "mean" else 0)
    return halos, gathers
