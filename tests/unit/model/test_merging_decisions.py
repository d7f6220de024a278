"""Decisions along a sequence: each pass alone, walked byte by byte, is the oracle."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena.layers.merging.stage import MergedStage
from megatron_hyena.model.decisions import Grid, decisions_along
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import draw_bytes, small_config, small_model

NESTED = "S(L(S)0.5)0.4"
TOTAL = 700


def model_of(pattern: str = NESTED, **changes: object) -> HyenaGLT:
    """Windows of 16; the shifts are set so that about the asked rates open."""
    model = small_model(small_config(pattern, window=16, **changes)).eval()
    ids = draw_bytes(4, 2 * model.merging_multiple, seed=5)
    for number, stage in enumerate(model.stages):
        assert isinstance(stage, MergedStage)
        if stage.router is None:
            continue
        merge = model(ids).merges[number]
        logits = torch.logit(merge.probability_LB[merge.below.present])
        stage.rate.shift -= torch.quantile(logits, 1 - stage.shape.keep)
    return model


def reader(ids):
    return lambda start, end: (ids[start:end], {})


def walked(model, ids):
    """{stage: [(byte, opened, p)]} of one sequence from its first byte on, by plain loops."""
    merges = model(ids[None]).merges
    found: dict[int, list[tuple[int, bool, float]]] = {}
    # Padding included.
    bytes_of: dict[int | None, list[int | None]] = {None: [*range(len(merges[0].probability_LB))]}
    for number, merge in enumerate(merges):
        window, slots = merge.chunks.opens_nWB.shape[1], merge.chunks.start_nKB.shape[1]
        outer = bytes_of[number - 1 if number else None]
        own, rows = [], []
        for first in range(0, len(merge.probability_LB), window):
            taken = []
            for place in range(first, first + window):
                byte = outer[place] if place < len(outer) else None
                opened = bool(merge.chunks.opens_nWB[first // window, place - first, 0])
                if byte is None:
                    assert not opened or place >= len(outer)
                    continue
                rows.append((byte, opened, merge.probability_LB[place, 0].item()))
                if opened:
                    taken.append(byte)
            own += taken + [None] * (slots - len(taken))
        found[number], bytes_of[number] = rows, own
    return found


def expected(model, ids, grid):
    """What every pass says of the bytes that count in it."""
    together: dict[int, dict[int, tuple[bool, float]]] = {}
    for number in range(10_000):
        begin = number * grid.step
        if grid.counted(number)[0] >= grid.total:
            break
        low = begin if number == 0 else begin + grid.length - grid.step
        for stage, rows in walked(model, ids[begin : begin + grid.length]).items():
            for byte, opened, p in rows:
                if low <= begin + byte < min(begin + grid.length, grid.total):
                    assert begin + byte not in together.setdefault(stage, {})
                    together[stage][begin + byte] = (opened, p)
    return together


@pytest.fixture(scope="module")
def nested():
    model, ids = model_of(slots=10), draw_bytes(1, TOTAL)[0]
    grid = Grid.of(TOTAL, 2 * model.merging_multiple + 3, model.merging_multiple)
    return model, ids, grid, expected(model, ids, grid)


@pytest.mark.parametrize("span", [(0, TOTAL), (0, 1), (333, 334), (90, 411), (TOTAL - 1, TOTAL)])
def test_decisions_are_those_of_each_pass_alone_whatever_is_asked_for(nested, span):
    model, ids, grid, oracle = nested
    assert TOTAL % grid.step
    found = decisions_along(model, reader(ids), grid, *span)
    assert len(found) == 2
    for number, one in enumerate(found):
        rows = oracle[number]
        assert one.probability is not None
        assert one.place.tolist() == sorted(one.place.tolist())
        for byte, opened, p in zip(one.place, one.opened, one.probability, strict=True):
            assert rows[int(byte)][0] == bool(opened)
            assert rows[int(byte)][1] == pytest.approx(float(p), abs=1e-9)
        covered = [b for b in rows if span[0] <= b < span[1]]
        assert set(covered) <= set(one.place.tolist())
        assert one.place.max() < one.end <= TOTAL


def test_rates_vary_and_chunks_tile_the_sequence(nested):
    model, ids, grid, _ = nested
    for number, one in enumerate(decisions_along(model, reader(ids), grid, 0, TOTAL)):
        assert 0.1 < one.opened.double().mean() < 0.9
        starts, ends = one.chunks()
        assert starts[0] == 0 and ends[-1] == TOTAL and one.end == TOTAL
        assert torch.equal(starts[1:], ends[:-1]) and (ends > starts).all()
        assert one.opened[one.anchor].all()
        assert not (one.opened & ~one.wanted & ~one.anchor).any()
        if number == 0:  # who wanted to open and does not stands in a window that is full
            refused = (one.wanted & ~one.opened).nonzero()[:, 0]
            full = one.opened[: TOTAL // 16 * 16].view(-1, 16).sum(1) == model.stages[0].shape.slots
            assert len(refused) and full[refused // 16].all()


def test_inner_positions_are_the_bytes_that_opened_outer_chunks(nested):
    model, ids, grid, _ = nested
    outer, inner = decisions_along(model, reader(ids), grid, 0, TOTAL)
    assert torch.equal(inner.place, outer.place[outer.opened])


def test_a_byte_before_the_context_changes_nothing(nested):
    model, ids, grid, _ = nested
    at = grid.length + 5
    changed = ids.clone()
    changed[: at - grid.length] = 65
    before, after = (
        decisions_along(model, reader(x), grid, at + grid.step, at + grid.step + 1)
        for x in (ids, changed)
    )
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.place, other.place)
        torch.testing.assert_close(one.probability, other.probability)


@pytest.mark.parametrize("multiple", [8, 48])
@pytest.mark.parametrize("length", [8, 100, 1000])
def test_passes_tile_a_sequence_and_leave_context(length, multiple):
    for total in (1, 47, 96, 97, 1000, 5003):
        grid = Grid.of(total, length, multiple)
        assert grid.length % multiple == grid.step % multiple == 0
        assert grid.length >= 2 * multiple and grid.length <= max(length, 2 * multiple)
        assert 0 < grid.step <= grid.length - grid.step
        at = 0
        for number in grid.passes(0, total):
            low, high = grid.counted(number)
            assert low == at and high > low
            assert number == 0 or low - number * grid.step >= grid.length // 2
            at = high
        assert at == total
        for byte in range(0, total, 31):
            (number,) = grid.passes(byte, byte + 1)
            assert grid.counted(number)[0] <= byte < grid.counted(number)[1]


def test_given_boundaries_are_wanted_and_have_no_probability():
    model = model_of("S(L(S))", merger="precomputed", merge_ratio=0.75, slots=6)
    ids = draw_bytes(1, 300)[0]
    generator = torch.Generator().manual_seed(2)
    marks = torch.randint(0, 3, (300,), generator=generator)
    grid = Grid.of(300, 96, model.merging_multiple)
    found = decisions_along(
        model, lambda a, b: (ids[a:b], {"boundaries": marks[a:b]}), grid, 0, 300
    )
    for depth, one in enumerate(found):
        assert one.probability is None
        assert torch.equal(one.wanted, marks[one.place] > depth)
        assert (one.wanted & ~one.opened).any()


def test_even_chunks_are_even():
    model = model_of("S(L)", merger="static", merge_ratio=0.75)
    ids = draw_bytes(1, 100)[0]
    (found,) = decisions_along(model, reader(ids), Grid.of(100, 64, 16), 40, 60)
    starts, ends = found.chunks()
    assert (starts % 4 == 0).all() and (ends - starts == 4).all()
    assert torch.equal(found.wanted, found.opened)


@pytest.mark.parametrize("multiple", [8, 48])
@pytest.mark.parametrize("length", [8, 100, 150, 1000, 1100])
def test_passes_of_a_model_that_sees_both_sides_leave_context_on_both(length, multiple):
    for total in (1, 47, 96, 144, 145, 1000, 5003):
        grid = Grid.of(total, length, multiple, causal=False)
        assert grid.length % multiple == grid.step % multiple == grid.behind % multiple == 0
        assert 3 * multiple <= grid.length <= max(length, 3 * multiple)
        at, numbers = 0, list(grid.passes(0, total))
        for number in numbers:
            begin, (low, high) = number * grid.step, grid.counted(number)
            assert low == at and high > low
            assert number == 0 or low - begin >= grid.length / 4
            assert high == total or begin + grid.length - high >= grid.length / 4
            assert begin < total  # no pass of padding alone
            at = high
        assert at == total and (total > grid.length or numbers == [0])
        for byte in range(0, total, 31):
            (number,) = grid.passes(byte, byte + 1)
            assert grid.counted(number)[0] <= byte < grid.counted(number)[1]


@pytest.mark.parametrize("pattern", ["S(L)", "S(S(S)0.5)0.4"])
@pytest.mark.parametrize("span", [(0, 1920), (500, 700), (1919, 1920)])
def test_a_model_that_sees_both_sides_decides_as_in_one_pass_over_all(pattern, span):
    """Its layers before the routers reach less than a quarter of a pass."""
    model = model_of(pattern, causal=False, slots=12)
    assert 1920 % model.merging_multiple == 0
    ids = draw_bytes(1, 1920)[0]
    grid = Grid.of(1920, 4 * 64 + 3, model.merging_multiple, causal=False)
    assert grid.length == 4 * 64
    found = decisions_along(model, reader(ids), grid, *span)
    for number, rows in walked(model, ids).items():
        one, whole = found[number], {byte: (opened, p) for byte, opened, p in rows}
        assert one.probability is not None
        covered = [byte for byte in whole if span[0] <= byte < span[1]]
        assert set(covered) <= set(one.place.tolist())
        for byte, opened, p in zip(one.place, one.opened, one.probability, strict=True):
            assert whole[int(byte)][0] == bool(opened)
            assert whole[int(byte)][1] == pytest.approx(float(p), abs=1e-9)
