"""Models with merged stages whose openings vary, and a record of what each stage was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.pattern import Stage
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.stage import Merge, MergedStage
from megatron_hyena.model.hyena_glt import HyenaGLT, HyenaGLTOutput
from tests.oracles import merging
from tests.oracles.documents import counted
from tests.oracles.drawing import disturb, small_config, weights

NESTED = "S(S(M)S)S"
KINDS: dict[str, dict[str, Any]] = {
    "wcc": {},
    "cosine and mean": {"similarity": "cosine", "merge_fn": "mean"},
    "threshold, temperature": {"threshold": 0.3, "router_temperature": 2.5, "merge_fn": "select"},
    "not smoothed": {"smoothing": "none", "merge_ratio": 0.25},
    "trunk": {"router_input": "trunk"},
    "adaptive window": {"adaptive": True, "complexity": "window", "gamma": 5.0},
    "adaptive window of the trunk": {
        **{"adaptive": True, "complexity": "window", "gamma": 5.0, "router_input": "trunk"}
    },
    "adaptive kmer": {"adaptive": True, "complexity": "kmer", "gamma": 9.0, "window": 16},
    "hnet": {"merger": "hnet"},
    "hnet trunk": {"merger": "hnet", "router_input": "trunk", "smoothing": "none"},
    "static": {"merger": "static", "merge_ratio": 0.625},
    "static select": {"merger": "static", "merge_fn": "select"},
    "precomputed": {"merger": "precomputed", "merge_fn": "mean"},
    "precomputed linear": {"merger": "precomputed"},
}
"""Ways to merge: every merger, merge_fn, similarity, smoothing, complexity and router input."""
LEARNED = [name for name, kind in KINDS.items() if kind.get("merger", "wcc") in ("wcc", "hnet")]


def merged_config(pattern: str = "S(M)S", **changes: Any) -> HyenaGLTConfig:
    """Small, with windows of 8 positions."""
    return small_config(pattern, **{"window": 8, "mr_filter_length": 24, **changes})


def dna(batch: int, length: int, seed: int = 0) -> Tensor:
    """Random letters, with N, lower case and a repeat of one letter: bytes [B, L], int64."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.tensor(list(b"ACGTacgtN"))
    ids = letters[torch.randint(0, len(letters), (batch, length), generator=generator)]
    ids[:, length // 2 : length // 2 + length // 6] = ord("A")
    return ids


def boundaries(batch: int, length: int, seed: int = 0) -> Tensor:
    """A random track of boundaries; every other one is of inner stages too: int64 [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 3, (batch, length), generator=generator).clamp(min=0)


def tracks_for(config: HyenaGLTConfig, ids: Tensor, seed: int = 0) -> dict[str, Tensor] | None:
    """What the merger reads beside the bytes."""
    if config.merger != "precomputed":
        return None
    return {"boundaries": boundaries(ids.shape[0], ids.shape[1], seed)}


@torch.no_grad()
def calibrate(model: HyenaGLT, run: Callable[[], object]) -> None:
    """Shift each stage to its rate, outermost first; the model is left in eval mode."""
    model.train()
    for stage in model.stages:
        assert isinstance(stage, MergedStage)
        stage.rate.take()
        run()
        stage.rate.start(stage.rate.take())
    model.eval()


def lively_model(config: HyenaGLTConfig, ids: Tensor, seed: int = 0) -> HyenaGLT:
    """fp64, random weights, routers of large logits, calibrated on `ids`."""
    model = HyenaGLT(config, seed=seed).double()
    disturb(model, seed)
    for stage in model.stages:
        assert isinstance(stage, MergedStage)
        if stage.router is not None:
            for name, parameter in stage.router.similarity.named_parameters():
                if name in ("out", "query", "key"):
                    parameter.data.mul_(3.0)
    calibrate(model, lambda: model(ids, tracks=tracks_for(config, ids)))
    return model


def opening_fractions(output: HyenaGLTOutput) -> list[float]:
    """Of each stage, the fraction of its (not empty) positions that opens a chunk."""
    return [float(m.chunks.opens_nWB.sum()) / float(m.below.present.sum()) for m in output.merges]


def assert_lively(output: HyenaGLTOutput) -> None:
    """Without openings that vary, a proof about them proves nothing."""
    for fraction in opening_fractions(output):
        assert 0.1 < fraction < 0.9


@dataclass
class Record:
    """Of one stage and forward pass: input x, merged u, decisions, what came back z, output y."""

    x: Tensor
    u: Tensor
    merge: Merge
    z: Tensor | None = None
    y: Tensor | None = None


def record(model: HyenaGLT) -> dict[int, list[Record]]:
    """Note what passes through each stage from now on: stage number -> its passes."""
    notes: dict[int, list[Record]] = {}
    for number, stage in enumerate(model.stages):
        assert isinstance(stage, MergedStage)
        _record_stage(stage, notes.setdefault(number, []))
    return notes


def _record_stage(stage: MergedStage, notes: list[Record]) -> None:
    entry, leave = stage.merge, stage.unmerge

    def merge(x: Tensor, axis: Axis) -> tuple[Tensor, Merge]:
        u, merge = entry(x, axis)
        notes.append(Record(x.detach(), u.detach(), merge))
        return u, merge

    def unmerge(z: Tensor, merge: Merge, x: Tensor) -> Tensor:
        y = leave(z, merge, x)
        (note,) = (n for n in notes if n.merge is merge)
        note.z, note.y = z.detach(), y.detach()
        return y

    stage.merge = merge  # type: ignore[method-assign,assignment]
    stage.unmerge = unmerge  # type: ignore[method-assign,assignment]


def stage_of(model: HyenaGLT, number: int = 0) -> MergedStage:
    """A model's stage."""
    stage = model.stages[number]
    assert isinstance(stage, MergedStage)
    return stage


def sizes_of(stage: MergedStage) -> merging.Sizes:
    """What the oracle needs to know beside the parameters."""
    return merging.Sizes(
        stage.shape.window,
        stage.shape.slots,
        stage.depth,
        stage.rate.shift.item(),
        stage.rate.complexity.item(),
    )


def byte_rows(
    model: HyenaGLT, ids: Tensor, documents: Tensor | None, tracks: dict[str, Tensor] | None
) -> list[merging.Row]:
    """The rows of the bytes, by the oracle; padded by PAD, 1, to whole windows of every stage."""
    config, w = model.config, weights(model.byte_axis)
    missing = (0, -ids.shape[1] % model.merging_multiple)
    groups = torch.zeros_like(ids) if documents is None else documents
    groups = torch.cat([groups, groups[:, -1:].expand(-1, missing[1])], dim=1)
    ids = F.pad(ids, missing, value=1)
    levels_BL = F.pad(tracks["boundaries"].long(), missing).tolist() if tracks else None
    rows = []
    for b, places in enumerate(counted(groups)):
        letters = ids[b].tolist()
        features = (
            merging.trunk_features(letters, places, merging.under(w, "trunk.")) if w else None
        )
        kmers = config.adaptive and config.complexity == "kmer"
        complexity = merging.kmer_complexities(letters, places) if kmers else None
        levels = levels_BL[b] if levels_BL else None
        rows.append(merging.Row(places, features, complexity, levels))
    return rows


def order_of_stages(items: tuple[int | Stage, ...]) -> list[tuple[int, int | None]]:
    """(number, number of the stage around it) of every stage, outer before inner."""
    found: list[tuple[int, int | None]] = []
    for item in items:
        if isinstance(item, Stage):
            found.append((item.number, None))
            found += [(n, item.number if o is None else o) for n, o in order_of_stages(item.items)]
    return found
