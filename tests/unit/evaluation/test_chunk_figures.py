"""Figures of chunks: against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_hyena.evaluation.chunks import (
    StagePositions,
    local_kept,
    stage_line,
    stage_summary,
)

START, END, TOTAL = 37, 161, 200


def stage(seed: int = 0, every: int = 1, routed: bool = True) -> StagePositions:
    """Random decisions on each or some of `TOTAL` bytes, the first an anchor."""
    random = np.random.default_rng(seed)
    place = np.flatnonzero((random.random(TOTAL) < 1 / every) | (np.arange(TOTAL) == 0))
    anchor = place % 50 == 0
    p = random.random(len(place))
    wanted = p > 0.5
    opened = anchor | (wanted & (random.random(len(place)) < 0.8))
    return StagePositions(
        "stage0", 0.4, place, opened, wanted, anchor, p if routed else None, TOTAL
    )


def test_chunks_reach_to_the_next_one_and_the_last_to_the_end():
    one = stage()
    assert one.starts.tolist() == [b for b, o in zip(one.place, one.opened, strict=True) if o]
    assert one.ends.tolist() == [*one.starts.tolist()[1:], TOTAL]


@pytest.mark.parametrize("routed", [True, False])
def test_overlapping_chunks_are_those_with_a_base_inside_and_whole(routed):
    one = stage(3, 4, routed)
    starts, ends, p = one.overlapping(START, END)
    members = [
        (a, b)
        for a, b in zip(one.starts, one.ends, strict=True)
        if any(START <= byte < END for byte in range(a, b))
    ]
    assert list(zip(starts, ends, strict=True)) == members
    assert starts[0] < START and ends[-1] > END
    given = np.ones(len(one.place)) if one.probability is None else one.probability
    at = dict(zip(one.place, given, strict=True))
    assert p.tolist() == [at[a] for a, _ in members]


@pytest.mark.parametrize("every", [1, 3])
def test_summary_counts_what_opens_inside(every):
    one = stage(1, every)
    part = np.zeros(END - START, dtype=bool)
    part[10:60] = True
    none = np.zeros_like(part)
    found = stage_summary(one, START, END, {"part": part, "none": none})
    rows = [
        r
        for r in zip(one.place, one.opened, one.wanted, one.anchor, strict=True)
        if START <= r[0] < END
    ]
    opened = [byte for byte, is_open, _, _ in rows if is_open]
    lengths = [b - a for a, b in zip(one.starts, one.ends, strict=True) if START <= a < END]
    free = [r for r in rows if r[2] and not r[3]]
    assert found["positions"] == len(rows) and found["chunks"] == len(opened)
    assert found["kept"] == len(opened) / len(rows) and found["target"] == 0.4
    assert found["kept_of_bytes"] == len(opened) / (END - START)
    assert found["mean_length"] == pytest.approx(sum(lengths) / len(lengths))
    assert found["median_length"] == np.median(lengths)
    assert found["length_95"] == np.quantile(lengths, 0.95)
    assert 0 < found["dropped"] == sum(not r[1] for r in free) / len(free)
    inside = sum(START + 10 <= byte < START + 60 for byte in opened)
    assert found["kept_of_bytes_in"] == {
        "part": {"bytes": 50, "kept": inside / 50},
        "none": {"bytes": 0, "kept": None},
    }
    line = stage_line(found)
    assert f"{len(opened)} chunks, kept {found['kept']:.3f} (target 0.400)" in line
    assert f"part {inside / 50:.3f}, none -" in line


def test_a_stretch_inside_one_chunk_has_no_chunk_of_its_own():
    one = stage(1, 3)
    wide = int(np.argmax(one.ends - one.starts))
    a, b = int(one.starts[wide]) + 1, int(one.starts[wide]) + 2
    found = stage_summary(one, a, b, {})
    assert found["chunks"] == 0 and found["mean_length"] is None and found["dropped"] in (None, 1)
    assert "length - bp" in stage_line(found)


def test_local_fractions_count_the_positions_of_each_stretch():
    one = stage(2, 3)
    edges = np.array([START, START + 1, 80, END])
    found = local_kept(one, edges)
    for low, high, share in zip(edges[:-1], edges[1:], found, strict=True):
        inside = (one.place >= low) & (one.place < high)
        if inside.any():
            assert share == one.opened[inside].mean()
        else:
            assert np.isnan(share)
    assert np.isnan(local_kept(one, np.array([5, 5 + 1]))).item() == (5 not in one.place)
