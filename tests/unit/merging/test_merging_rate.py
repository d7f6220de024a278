"""Rate control: exact counts, the quantile, the way to the asked rate, and a state that lasts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_hyena import HyenaGLT
from megatron_hyena.config.merging import StageShape, stage_shapes
from megatron_hyena.layers.merging.rate import (
    ANCHORS,
    BINS,
    COMPLEXITY,
    FIXED_POINT,
    LAG,
    LARGEST,
    OPENED,
    POSITIONS,
    SCALARS,
    WANTED,
    Rate,
    _quantile,
    rate_state,
)
from megatron_hyena.ops.merging import Chunks, admit
from tests.oracles.drawing import disturb
from tests.oracles.merged_models import (
    KINDS,
    NESTED,
    calibrate,
    dna,
    merged_config,
    opening_fractions,
    stage_of,
)

WIDTH = 2 * LARGEST / BINS


def histogram(logits: Tensor) -> Tensor:
    """Counted by numpy; what lies outside goes to the last bins."""
    edges = np.linspace(-LARGEST, LARGEST, BINS + 1)
    inside = np.clip(logits.numpy(), -LARGEST, LARGEST - 1e-9)
    return torch.from_numpy(np.histogram(inside, edges)[0])


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 2 / 3, 0.9, 0.999])
def test_the_quantile_is_that_of_numpy_to_a_bin(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale, centre in ((3.0, 1.0), (0.5, -7.0), (1e-3, 0.2)):
        logits = centre + scale * torch.randn(20000, generator=generator, dtype=torch.float64)
        found = _quantile(histogram(logits).double(), share)
        # Between two neighbours in the sparse tail any number is a quantile.
        low, high = np.quantile(logits.numpy(), [share - 1 / 20000, share + 1 / 20000])
        assert low - WIDTH <= found <= high + WIDTH


def test_the_quantile_of_one_bin_and_of_numbers_beyond_all_bins() -> None:
    """Inside a bin it is linear; it never leaves the histogram."""
    counts = torch.zeros(BINS, dtype=torch.float64)
    counts[1500] = 8
    assert _quantile(counts, 0.25) == pytest.approx((1500 + 0.25) * WIDTH - LARGEST)
    beyond = histogram(torch.tensor([1e9, 1e9, -1e9])).double()
    assert LARGEST - WIDTH <= _quantile(beyond, 0.9) <= LARGEST
    assert -LARGEST <= _quantile(beyond, 0.1) <= -LARGEST + WIDTH


def drawn_pass(
    rate: Rate, logits: Tensor, counted: Tensor | None = None, slots: int | None = None
) -> Chunks:
    """Let `rate` count one pass; logits [L, B] without the shift."""
    window = rate.shape.window
    shifted = (logits + rate.shift).unflatten(0, (-1, window))
    present = torch.ones_like(shifted, dtype=torch.bool)
    opens, anchors = admit(shifted > 0, present, slots or rate.shape.slots)
    chunks = Chunks.of(opens, slots or rate.shape.slots)
    everywhere = torch.ones_like(logits, dtype=torch.bool)
    rate.observe(
        shifted.flatten(0, 1) > 0,
        shifted.flatten(0, 1),
        chunks,
        anchors.flatten(0, 1),
        everywhere if counted is None else counted,
        None,
    )
    return chunks


def normal(length: int, rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, rows, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("merge_ratio", [0.25, 0.5, 2 / 3, 5 / 6])
def test_updates_reach_the_asked_rate_of_fixed_logits(merge_ratio: float) -> None:
    """From far off, within 0.01 of the kept fraction; then the shift moves no more."""
    config = merged_config(merge_ratio=merge_ratio, window=64)
    rate = Rate(StageShape(64, 64, merge_ratio), config)
    logits, figures = 3 * normal(64 * 200, 2) + 9, {}
    for _ in range(12):
        drawn_pass(rate, logits)
        figures = rate.update(rate.take())
    assert figures["kept"] == pytest.approx(1 - merge_ratio, abs=0.01)
    assert figures["dropped"] == 0
    settled = rate.shift.item()
    drawn_pass(rate, logits)
    assert rate.update(rate.take())["shift"] == pytest.approx(settled, abs=2 * WIDTH)


def test_the_rate_holds_where_chunks_crowd_and_the_budget_drops_many() -> None:
    """Half of the windows want all: what they are refused, the others open."""
    rate = Rate(StageShape(64, 40, 0.5), merged_config(window=64))
    crowd = (torch.arange(64 * 200) // 64 % 2 * 4.0 - 2.0)[:, None]
    logits, figures = normal(64 * 200, 2) + crowd, {}
    for _ in range(40):
        drawn_pass(rate, logits)
        figures = rate.update(rate.take())
    assert figures["dropped"] > 0.1
    assert figures["kept"] == pytest.approx(0.5, abs=0.01)


def test_from_all_wanting_to_open_the_rate_comes_back() -> None:
    rate = Rate(StageShape(64, 40, 0.5), merged_config(window=64))
    rate.shift.fill_(30.0)
    figures = {}
    for _ in range(12):
        drawn_pass(rate, normal(64 * 200, 2))
        figures = rate.update(rate.take())
    assert figures["dropped"] < 0.01
    assert figures["kept"] == pytest.approx(0.5, abs=0.01)


def test_calibration_reaches_the_rate_in_one_batch() -> None:
    rate = Rate(StageShape(64, 64, 0.75), merged_config(merge_ratio=0.75, window=64))
    logits = 2 * normal(64 * 200, 2) - 5
    drawn_pass(rate, logits)
    rate.start(rate.take())
    kept = drawn_pass(rate, logits).opens_nWB.double().mean()
    assert kept == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize("kind", ["wcc", "adaptive window", "adaptive kmer", "hnet trunk"])
def test_nested_stages_are_calibrated_to_their_rates(kind: str) -> None:
    """An adaptive one too, whose mean complexity is found by the same batch."""
    config = merged_config("S(S(M)0.4S)0.5S", **{"slots": 0, **KINDS[kind], "merge_ratio": 0.5})
    model = HyenaGLT(config).double()
    disturb(model)
    ids = dna(8, 512)
    calibrate(model, lambda: model(ids))
    with torch.no_grad():
        fractions = opening_fractions(model(ids))
    for fraction, keep in zip(fractions, (0.5, 0.6), strict=True):
        assert fraction == pytest.approx(keep, abs=0.04)  # the budget of a window takes some


def test_counts_are_exact_and_padding_does_not_count() -> None:
    """Against loops; the second half of the second row is padding."""
    config = merged_config(adaptive=True, complexity="window")
    rate = Rate(StageShape(8, 5, 0.5), config)
    logits = 3 * normal(64, 2)
    counted = torch.ones(64, 2, dtype=torch.bool)
    counted[35:, 1] = False
    complexity = torch.rand(64, 2, dtype=torch.float64)
    shape = logits.unflatten(0, (-1, 8))
    opens, anchors = admit(shape > 0, torch.ones_like(shape, dtype=torch.bool), 5)
    chunks = Chunks.of(opens, 5)
    for _ in range(2):
        rate.observe(logits > 0, logits, chunks, anchors.flatten(0, 1), counted, complexity)
    expected = counted_by_hand(logits, opens.flatten(0, 1), counted, complexity, 8)
    totals = rate.take()
    assert totals.tolist() == [2 * n for n in expected]
    assert not rate.take().any()
    assert totals[WANTED] > totals[OPENED] - totals[ANCHORS]  # some were dropped


def counted_by_hand(
    logits: Tensor, opens: Tensor, counted: Tensor, complexity: Tensor, window: int
) -> list[int]:
    """Scalars, the histogram of free logits, the lengths of chunks."""
    scalars, bins = [0] * SCALARS, [0] * BINS
    lengths = [0] * (window + 1)
    for b in range(logits.shape[1]):
        for first in range(0, len(logits), window):
            chunk_lengths: list[int] = []
            for t in range(first, first + window):
                if opens[t, b]:
                    chunk_lengths.append(0)
                if not counted[t, b]:
                    continue
                chunk_lengths[-1] += 1
                scalars[POSITIONS] += 1
                scalars[OPENED] += int(opens[t, b])
                scalars[COMPLEXITY] += round(complexity[t, b].item() * FIXED_POINT)
                if t == first:
                    scalars[ANCHORS] += 1
                    continue
                scalars[WANTED] += int(logits[t, b] > 0)
                place = int((logits[t, b].item() + LARGEST) // WIDTH)
                bins[min(max(place, 0), BINS - 1)] += 1
            for length in [*chunk_lengths, *[0] * (5 - len(chunk_lengths))]:
                lengths[length] += 1
    return [*scalars, *bins, *lengths]


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    """Whatever ranks or micro-batches share the rows and windows."""
    config, shape = merged_config(), StageShape(8, 6, 0.5)
    whole, parts = Rate(shape, config), [Rate(shape, config) for _ in range(4)]
    logits = 3 * normal(64, 4)
    drawn_pass(whole, logits)
    for i, part in enumerate(parts):
        drawn_pass(part, logits[32 * (i % 2) : 32 * (i % 2) + 32, 2 * (i // 2) : 2 * (i // 2) + 2])
    assert torch.equal(whole.take(), torch.stack([part.take() for part in parts]).sum(0))


def test_figures_and_lagged_means() -> None:
    """Kept, wanted and dropped fractions, and the quantiles of lengths, by hand."""
    config = merged_config(adaptive=True, complexity="window", controller_eta=1.0)
    rate = Rate(StageShape(8, 2, 0.75), config)
    logits = torch.tensor([[-1.0, 1, -1, 1, -1, -1, -1, 1], [-1.0, -1, -1, -1, -1, -1, -1, -1]])
    shape = logits.flatten()[:, None].unflatten(0, (-1, 8))
    opens, anchors = admit(shape > 0, torch.ones_like(shape, dtype=torch.bool), 2)
    everywhere = torch.ones(16, 1, dtype=torch.bool)
    chunks = Chunks.of(opens, 2)
    rate.observe(
        logits.flatten()[:, None] > 0,
        logits.flatten()[:, None],
        chunks,
        anchors.flatten(0, 1),
        everywhere,
        torch.full((16, 1), 0.25),
    )
    wanted_before = rate.wanted.item()
    figures = rate.update(rate.take())
    assert figures["kept"] == 3 / 16
    assert figures["wanted"] == 3 / 14
    assert figures["dropped"] == 2 / 3
    assert (figures["length_50"], figures["length_95"]) == (7, 8)
    assert rate.wanted.item() == pytest.approx(LAG * wanted_before + (1 - LAG) * 3 / 14)
    assert rate.complexity.item() == pytest.approx(LAG * 0.5 + (1 - LAG) * 0.25)


def test_a_step_without_free_positions_moves_nothing() -> None:
    rate = Rate(StageShape(8, 6, 0.5), merged_config())
    before = {name: b.clone() for name, b in rate.state_dict().items()}
    assert rate.update(rate.take()) == {}
    assert all(torch.equal(b, before[name]) for name, b in rate.state_dict().items())


def moved(rate: Rate) -> None:
    """Numbers that half precision cannot hold."""
    rate.shift.fill_(1.2345678901234)
    rate.wanted.fill_(0.3333333333333)
    rate.complexity.fill_(0.7777777777777)


@pytest.mark.parametrize("how", ["half", "bfloat16", "float", "double", "to"])
def test_the_state_keeps_its_precision_when_the_model_loses_its_own(how: str) -> None:
    model = HyenaGLT(merged_config(NESTED))
    for number in range(2):
        moved(stage_of(model, number).rate)
    before = {name: b.clone() for name, b in rate_state(model).items()}
    model = model.to(torch.float16) if how == "to" else getattr(model, how)()
    after = rate_state(model)
    assert len(after) == 6
    for name, buffer in after.items():
        assert buffer.dtype == torch.float64
        assert torch.equal(buffer, before[name])
    assert stage_of(model).rate.counts.dtype == torch.int64
    assert next(model.parameters()).dtype != torch.float64 or how == "double"


def test_the_state_goes_through_a_state_dict_and_the_counts_do_not() -> None:
    one, other = HyenaGLT(merged_config(NESTED)), HyenaGLT(merged_config(NESTED))
    moved(stage_of(one, 1).rate)
    stage_of(one, 1).rate.counts.fill_(3)
    other.load_state_dict(one.state_dict())
    assert not any("counts" in name for name in one.state_dict())
    for name, buffer in rate_state(one).items():
        assert torch.equal(buffer, rate_state(other)[name])
    assert not stage_of(other, 1).rate.counts.any()


@pytest.mark.parametrize("kind", ["wcc", "adaptive window of the trunk", "hnet", "static"])
def test_a_saved_model_has_its_rates(kind: str, tmp_path: Path) -> None:
    """`save_pretrained` and back: the same openings, logits and state, to the bit."""
    config = merged_config(NESTED, **KINDS[kind])
    model, ids = HyenaGLT(config), dna(2, 192)
    disturb(model)
    calibrate(model, lambda: model(ids))
    for number in range(2):
        stage_of(model, number).rate.wanted.fill_(0.123)
    model.save_pretrained(tmp_path)
    again = HyenaGLT.from_pretrained(tmp_path).eval()
    assert again.config == config
    assert rate_state(again).keys() == rate_state(model).keys()
    for name, buffer in rate_state(model).items():
        assert torch.equal(rate_state(again)[name], buffer)
    with torch.no_grad():
        found, expected = again(ids), model(ids)
    assert torch.equal(found.logits, expected.logits)
    for one, other in zip(found.merges, expected.merges, strict=True):
        assert torch.equal(one.chunks.opens_nWB, other.chunks.opens_nWB)


def test_padding_counts_neither_in_the_outer_nor_in_the_inner_stage() -> None:
    """A row of PAD behind the text moves no count but the lengths of empty slots."""
    config = merged_config(NESTED, slots=4)
    model = HyenaGLT(config).train()
    disturb(model)
    counts = []
    for padding in (0, 64):
        ids = torch.nn.functional.pad(dna(2, 128), (0, padding), value=1)
        model(ids)
        counts.append([stage_of(model, number).rate.take() for number in range(2)])
    for plain, padded in zip(*counts, strict=True):
        empty = SCALARS + BINS
        assert plain[POSITIONS] > 0
        assert torch.equal(plain[:empty], padded[:empty])
        assert torch.equal(plain[empty + 1 :], padded[empty + 1 :])


@pytest.mark.parametrize("window", [8, 128])
@pytest.mark.parametrize("merge_ratio", [0.0, 1e-6, 0.01, 0.04, 0.1, 0.5, 0.8])
def test_the_slope_of_the_ratio_loss_is_bounded_as_nothing_is_to_be_merged(
    merge_ratio: float, window: int
) -> None:
    """weight N / (N - 1) (N F - 1), or nothing where more than 0.95 of the free are to open."""
    config = merged_config(merge_ratio=merge_ratio, window=window, ratio_weight=3.0)
    rate = Rate(stage_shapes(config)[0], config)
    rate.wanted.fill_(0.5 * rate.target)
    free = (window * (1 - merge_ratio) - 1) / (window - 1)  # the anchor opens anyway
    slope = rate.penalty(torch.ones((), dtype=torch.float64)).item()
    if free > 0.95:
        assert slope == 0
    else:
        assert slope == pytest.approx(3 / (1 - free) * (0.5 - 1))
        assert abs(slope) <= 3 * 20 / 2


def test_a_model_that_merges_nothing_trains_without_a_ratio_loss() -> None:
    model, ids = HyenaGLT(merged_config(merge_ratio=0.0, slots=8)).train(), dna(2, 64)
    stage_of(model).rate.wanted.fill_(0.1)
    output = model(ids, labels=ids)
    assert output.ratio_loss == 0
    output.loss.backward()
