"""Merging layers by themselves, batch-first: entry and exit of a stage without its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_hyena.compat.operators import check_states
from megatron_hyena.config.merging import stage_shapes
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.keeping import Rates, counting
from megatron_hyena.layers.merging.stage import Merge, MergedStage
from megatron_hyena.layers.parameter import drawn_seed, initialise
from megatron_hyena.layers.provider import DenseProvider

THRESHOLD = 0.1
"""The seed's similarity below which a chunk opens."""
SET_BY_THE_LAYER = {
    "pattern": "a merging layer is the entry and the exit of one stage: give the blocks between "
    "them the merged vectors",
    "hidden_size": "the layer's width is d_model",
}
"""Fields that a layer by itself does not take, and what to use."""
NEEDS_MORE = {
    ("complexity", "kmer"): "the bytes of the sequence; use complexity='window'",
    ("router_input", "trunk"): "the bytes of the sequence; use router_input='encoder'",
    ("merger", "precomputed"): "the track `boundaries`; use merger='wcc', 'hnet' or 'static'",
}
"""Values of fields that need what only a model is given."""
FIELDS = {
    *("merger", "window", "slots", "similarity", "router_temperature", "router_input", "merge_fn"),
    *(
        "smoothing",
        "adaptive",
        "complexity",
        "gamma",
        "ratio_loss",
        "ratio_weight",
        "controller_eta",
    ),
    *("causal", "norm_eps"),
}
"""Fields of the model section that a layer by itself reads."""


def _check_fields(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in SET_BY_THE_LAYER:
            raise UserError(f"{name}={value!r} cannot be given: {SET_BY_THE_LAYER[name]}")
        if name not in FIELDS:
            known = ", ".join(sorted(FIELDS))
            raise UserError(
                f"{name}={value!r} has no meaning in a merging layer, which takes {known}"
            )
        if (name, value) in NEEDS_MORE:
            raise UserError(
                f"{name}={value!r} needs more than the states of a layer by itself: "
                f"{NEEDS_MORE[name, value]}, or HyenaGLT with a pattern that has ( )"
            )


class DynamicMergingLayer(nn.Module):
    """Merge positions whose state resembles the one before, causally, in windows of fixed slots.

    Args:
        d_model: channels.
        merge_ratio: fraction of positions to remove.
        threshold: similarity below which a chunk opens; `calibrate` and `after_step` shift it to
            the asked ratio.
        fields: further fields of merging in `HyenaGLTConfig`, such as `window` or `similarity`.

    The merged vectors themselves carry no gradient to the router, whose decisions are hard: it
    learns by way of `unmerge`, from the smoothing and the straight-through confidence, or from
    `Merge.penalty_LB`.

    Raises:
        UserError: a field that needs more than a layer by itself has, or has no meaning in it.
    """

    def __init__(
        self, d_model: int, merge_ratio: float = 0.5, threshold: float = THRESHOLD, **fields: Any
    ) -> None:
        super().__init__()
        _check_fields(fields)
        if fields.get("merger") != "static" or threshold != THRESHOLD:
            fields["threshold"] = threshold
        config = HyenaGLTConfig(
            pattern="(L)", hidden_size=d_model, merge_ratio=merge_ratio, **fields
        )
        self.stage = MergedStage(stage_shapes(config)[0], 0, config, DenseProvider())
        self.width = d_model
        initialise(self, drawn_seed(), rank=0, size=1)

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, L, d] -> (merged_x [B, M, d], merge_indices int64 [B, L]).

        `merge_indices` is the slot that each position reads. M is the number of slots of the
        windows that L positions begin; empty slots are 0, those behind the last position too.
        """
        merged, merge = self.merge(x_BLD)
        return merged, merge.chunks.index().t()[:, : x_BLD.shape[1]]

    def merge(self, x_BLD: Tensor) -> tuple[Tensor, Merge]:
        """The merged vectors, and all that was decided, for `unmerge`."""
        check_states(x_BLD, self.width, longest=None)
        x = self._padded(x_BLD)
        place = torch.arange(len(x), device=x.device)[:, None].expand(*x.shape[:2])
        real = place < x_BLD.shape[1]
        axis = Axis(place.masked_fill(~real, -1), real, sparse=len(x) > x_BLD.shape[1])
        u, merge = self.stage.merge(x, axis)
        return u.transpose(0, 1), merge

    def unmerge(self, z_BMD: Tensor, merge: Merge, x_BLD: Tensor) -> Tensor:
        """What became of the merged vectors, at the positions of x: [B, L, d]."""
        y = self.stage.unmerge(z_BMD.transpose(0, 1), merge, self._padded(x_BLD))
        return y.transpose(0, 1)[:, : x_BLD.shape[1]]

    def calibrate(self, x_BLD: Tensor) -> None:
        """Shift the threshold so that of x the asked fraction is removed."""
        with counting(self):
            Rates(self).calibrate(lambda: self.merge(x_BLD))

    def after_step(self) -> dict[str, float]:
        """Keep the rate: to be called after each optimizer step; returns the step's figures."""
        (figures,) = Rates(self).update()
        return figures

    def _padded(self, x_BLD: Tensor) -> Tensor:
        missing = -x_BLD.shape[1] % self.stage.shape.window
        return F.pad(x_BLD, (0, 0, 0, missing)).transpose(0, 1).contiguous()


class AdaptiveMergingLayer(DynamicMergingLayer):
    """The same, merging more where sequence is simple and less where it is complex.

    Complexity is that of the windows before; the fraction removed in all stays `base_merge_ratio`.
    """

    def __init__(self, d_model: int, base_merge_ratio: float = 0.5, **fields: Any) -> None:
        for name, own in (("merge_ratio", "base_merge_ratio"), ("adaptive", "DynamicMergingLayer")):
            if name in fields:
                raise UserError(f"{name}={fields[name]!r} cannot be given here: use {own}")
        fields.setdefault("complexity", "window")  # the default wants bytes
        super().__init__(d_model, base_merge_ratio, adaptive=True, **fields)
