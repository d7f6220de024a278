"""Merged stages against the loops of `tests.oracles.merging`: indices exactly, numbers to 1e-12."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.merging import StageShape, merging_multiple
from megatron_hyena.layers.merging.axis import Axis
from megatron_hyena.layers.merging.stage import Merge, MergedStage
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.ops.merging import Chunks, admit
from tests.oracles import merging
from tests.oracles.documents import numbered
from tests.oracles.drawing import disturb, draw, weights
from tests.oracles.merged_models import (
    KINDS,
    LEARNED,
    NESTED,
    Record,
    assert_lively,
    byte_rows,
    dna,
    lively_model,
    merged_config,
    order_of_stages,
    record,
    sizes_of,
    stage_of,
    tracks_for,
)
from tests.oracles.operators import Array


def close(found: Tensor, expected: Array, what: str) -> None:
    assert found.shape == expected.shape, what
    error = np.abs(found.numpy() - expected).max() / max(np.abs(expected).max(), 1.0)
    assert error <= 1e-12, f"{what}: {error:.1e}"


def assert_as_the_loop(
    stage: MergedStage, config: HyenaGLTConfig, note: Record, rows: list[merging.Row]
) -> list[merging.Row]:
    """One stage, every row; returns the rows of its slots."""
    w, sizes, inner = weights(stage), sizes_of(stage), []
    for b, row in enumerate(rows):
        x = note.x[:, b].numpy()
        expected = merging.merge(x, row, w, sizes, config)
        present = np.array(row.places) >= 0
        assert_indices(note.merge, b, expected, present, sizes)
        close(note.u[:, b], expected.vectors, "merged vectors")
        if expected.probability is not None:
            assert note.merge.probability_LB is not None
            found, wanted = note.merge.probability_LB[:, b], np.array(expected.probability)
            close(found.detach()[torch.from_numpy(present)], wanted[present], "probabilities")
        assert (note.merge.gate_MB is None) == (expected.gates is None)
        if expected.gates is not None and note.merge.gate_MB is not None:
            close(note.merge.gate_MB[:, b].detach(), np.array(expected.gates), "gates")
        if note.z is not None and note.y is not None:
            y = merging.unmerge(note.z[:, b].numpy(), expected, x, w)
            close(note.y[:, b][torch.from_numpy(present)], y[present], "outputs")
        inner.append(expected.row)
    return inner


def assert_indices(
    merge: Merge,
    b: int,
    expected: merging.Merged,
    present: npt.NDArray[np.bool_],
    sizes: merging.Sizes,
) -> None:
    """Openings, slots read, openings of slots, places and lengths: equal integers."""
    chunks = merge.chunks
    assert chunks.opens_nWB.flatten(0, 1)[:, b].tolist() == expected.opens
    window = torch.arange(len(present)) // sizes.window
    slot = window * sizes.slots + chunks.slot_nWB.flatten(0, 1)[:, b]
    assert slot[torch.from_numpy(present)].tolist() == [s for s in expected.slot if s >= 0]
    first = torch.arange(len(expected.starts)) // sizes.slots * sizes.window
    starts = first + chunks.start_nKB.flatten(0, 1)[:, b]
    filled = chunks.filled_nKB.flatten(0, 1)[:, b]
    assert starts.masked_fill(~filled, -1).tolist() == expected.starts
    assert merge.axis.place_LB[:, b].tolist() == expected.row.places
    counted = merge.below.present.view_as(chunks.opens_nWB)
    assert chunks.lengths(counted).flatten(0, 1)[:, b].tolist() == expected.lengths


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_of_a_model_equal_the_loop(kind: str, packed: bool) -> None:
    """Outer and inner stage of a whole model, from the bytes on; the last window is padded."""
    config = merged_config(NESTED, **KINDS[kind])
    multiple = merging_multiple(config)
    length = max(3 * multiple, 128) - 5
    ids = dna(3, length)
    model, tracks = lively_model(config, ids), tracks_for(config, ids)
    starts = [[], [multiple], [multiple, 2 * multiple]]
    documents = numbered(length, starts) if packed else None
    notes = record(model)
    with torch.no_grad():
        output = model(ids, document_ids=documents, tracks=tracks)
    assert_lively(output)
    rows: dict[int | None, list[merging.Row]] = {None: byte_rows(model, ids, documents, tracks)}
    order = order_of_stages(model.layout.items)
    assert len(order) == 2
    for number, outer in order:
        (note,) = notes[number]
        rows[number] = assert_as_the_loop(stage_of(model, number), config, note, rows[outer])


def drawn_axis(stage: MergedStage, windows: int, seed: int, trunk: bool) -> Axis:
    """A sparse axis of two rows: holes, a window of one position, an empty window, a document."""
    window, generator = stage.shape.window, torch.Generator().manual_seed(seed)
    length = windows * window
    held = torch.rand(length, 2, generator=generator) < 0.7
    held[::window] |= torch.rand(windows, 2, generator=generator) < 0.5
    held[0] = True
    held[window : 2 * window] = False
    held[2 * window - 1, 0] = True
    held[3 * window, 1] = True
    place = torch.arange(length)[:, None].repeat(1, 2)
    place[3 * window :, 1] -= 3 * window
    place = place.masked_fill(~held, -1)
    features = draw(length, 2, 64, seed=seed) * held[..., None] if trunk else None
    complexity = torch.rand(length, 2, generator=generator, dtype=torch.float64) * held
    track = torch.randint(0, 3, (length, 2), generator=generator) * held
    return Axis(place, held, True, features, complexity, {"boundaries": track})


def rows_of(axis: Axis) -> list[merging.Row]:
    """The same for the oracle."""
    features, complexity, track = axis.router_LBR, axis.complexity_LB, axis.tracks["boundaries"]
    return [
        merging.Row(
            axis.place_LB[:, b].tolist(),
            None if features is None else features[:, b].numpy(),
            None if complexity is None else complexity[:, b].tolist(),
            track[:, b].tolist(),
        )
        for b in range(axis.place_LB.shape[1])
    ]


def drawn_stage(config: HyenaGLTConfig, window: int, slots: int, depth: int = 0) -> MergedStage:
    stage = MergedStage(StageShape(window, slots, 0.5), depth, config, DenseProvider())
    initialise(stage, 0, 0, 1)
    stage.double().eval()
    disturb(stage)
    return stage


@torch.no_grad()
def passed(stage: MergedStage, axis: Axis, seed: int = 0) -> Record:
    """A pass of random numbers; at empty positions they are large."""
    shape = (*axis.place_LB.shape, stage.skip.shape[0])
    x = torch.where(axis.present[..., None], draw(*shape, seed=seed), 1e3)
    u, merge = stage.merge(x, axis)
    z = draw(*u.shape, seed=seed + 1)
    return Record(x, u, merge, z, stage.unmerge(z, merge, x))


@pytest.mark.parametrize(("window", "slots"), [(2, 1), (5, 2), (8, 8), (12, 5), (70, 66)])
@pytest.mark.parametrize("kind", KINDS)
def test_stages_on_axes_with_empty_positions_equal_the_loop(
    kind: str, window: int, slots: int
) -> None:
    """Windows and slots that divide nothing; more positions than a block of the scan."""
    changes = KINDS[kind]
    config = merged_config(**changes)
    depth = int(config.merger == "precomputed")
    stage = drawn_stage(config, window, slots, depth)
    axis = drawn_axis(stage, windows=7, seed=window, trunk=config.router_input == "trunk")
    if stage.router is not None:
        stage.router.rate.shift -= mean_logit(stage, axis)
        stage.router.rate.complexity.fill_(0.3)
    note = passed(stage, axis)
    opened = note.merge.chunks.opens_nWB.sum() / axis.present.sum()
    assert config.merger == "static" or slots == 1 or 0.1 < opened < 0.9
    assert_as_the_loop(stage, config, note, rows_of(axis))


@torch.no_grad()
def mean_logit(stage: MergedStage, axis: Axis) -> float:
    """Of positions that are not empty."""
    assert stage.router is not None
    x = torch.where(axis.present[..., None], draw(*axis.place_LB.shape, len(stage.skip)), 1e3)
    logits, _ = stage.router(x, axis, stage.provider.stream)
    return float(logits[axis.present].mean())


@pytest.mark.parametrize("all_want", [False, True])
@pytest.mark.parametrize("kind", [*LEARNED, "precomputed"])
def test_a_budget_is_kept_when_all_want_and_the_anchor_when_none_does(
    kind: str, all_want: bool
) -> None:
    """Exactly K slots of a full window, or as many as it has positions; exactly one."""
    config = merged_config(**KINDS[kind])
    stage = drawn_stage(config, window=8, slots=5)
    axis = drawn_axis(stage, windows=9, seed=1, trunk=config.router_input == "trunk")
    if stage.router is not None:
        stage.router.rate.shift.fill_(100.0 if all_want else -100.0)
    wanted = torch.full_like(axis.place_LB, int(all_want))
    axis = replace(axis, tracks={"boundaries": wanted})
    note = passed(stage, axis)
    assert_as_the_loop(stage, config, note, rows_of(axis))
    present = axis.present.view(9, 8, 2).sum(1)
    kept = note.merge.chunks.filled_nKB.sum(1)
    assert torch.equal(kept, present.clamp(max=5 if all_want else 1))
    assert (present > 5).any()
    assert (present == 0).any()


@pytest.mark.parametrize("kind", ["wcc", "hnet", "static", "precomputed"])
def test_with_a_full_budget_and_selection_nothing_is_lost(kind: str) -> None:
    """unmerge(merge(x)) = x bit for bit, and so are reading and opening by themselves."""
    changes = {**KINDS[kind], "merge_fn": "select", "smoothing": "none", "merge_ratio": 0.0}
    config = merged_config(**changes)
    stage = drawn_stage(config, window=8, slots=8)
    place = torch.arange(64)[:, None].expand(64, 3)
    track = {"boundaries": torch.ones_like(place)}
    axis = Axis(place, place >= 0, sparse=False, tracks=track)
    if stage.router is not None:
        stage.router.rate.shift.fill_(100.0)
    x = draw(64, 3, 8)
    u, merge = stage.merge(x, axis)
    assert torch.equal(merge.chunks.read(merge.chunks.openings(x)), x)
    assert torch.equal(u, x)
    assert torch.equal(stage.unmerge(u, merge, torch.zeros_like(x)), x)


def test_the_openings_of_any_decision_are_read_back() -> None:
    """At each opening, what a position reads of the openings is itself; 0 in empty slots."""
    generator = torch.Generator().manual_seed(0)
    opens, _ = admit(
        torch.rand(6, 7, 3, generator=generator) < 0.5,
        torch.rand(6, 7, 3, generator=generator) < 0.8,
        slots=3,
    )
    chunks, x = Chunks.of(opens, 3), draw(42, 3, 5)
    back, at = chunks.read(chunks.openings(x)), opens.flatten(0, 1)
    assert torch.equal(back[at], x[at])
    assert torch.equal(chunks.openings(x).any(-1), chunks.filled_nKB.flatten(0, 1))
