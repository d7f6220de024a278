"""Spans of a sequence, and how layers reach beyond theirs, on threads instead of processes.

The oracle is the operator, or the layer, on the whole sequence at once.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call

from megatron_hyena.config import HyenaGLTConfig
from megatron_hyena.config.pattern import SIGNS
from megatron_hyena.layers.exchange import (
    ALL_CHANNELS,
    channel_taps,
    fir_across,
    over_channels,
    state_across,
)
from megatron_hyena.layers.provider import OneRank
from megatron_hyena.layers.span import Span, positions
from megatron_hyena.model.hyena_glt import mixer_class
from megatron_hyena.ops.documents import Documents
from megatron_hyena.ops.fir import causal_fir
from megatron_hyena.ops.modal import modal_conv
from tests.oracles.documents import counted, drawn, layouts, numbered
from tests.oracles.drawing import draw, small_config, small_mixer
from tests.oracles.threads import ThreadContext, ThreadProvider, on_threads

LENGTH = 60
# Stretches of 60 down to 3 positions.
SIZES = [1, 3, 20, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 5))]
LAYOUTS: dict[str, Tensor | None] = {"without": None, **layouts(LENGTH)}
# Starts on the first and the last position of stretches of 15, twice in a row, in their middle.
EDGES = numbered(LENGTH, [[15, 16, 30], [14, 15, 44, 59], [7], [29, 31, 45]])


def close(found: Tensor, expected: Tensor, what: str = "") -> None:
    """To 1e-12 of the largest number."""
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    assert error <= 1e-12, f"{what}: {error:.1e}"


def gradients_close(found: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Of two scalars, for each of the inputs."""
    mine, theirs = (grad(y, inputs, retain_graph=True) for y in (found, expected))
    for index, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        close(one, other, f"gradient {index}")


def of_ids(ids: Tensor | None) -> Documents | None:
    return None if ids is None else Documents.from_ids(ids)


def stretch(context: ThreadContext, x: Tensor, dim: int = -1) -> Tensor:
    return x.chunk(context.size, dim=dim)[context.rank]


def test_a_span_holds_its_stretch_of_the_documents() -> None:
    ids = drawn(2, 12, seed=3)
    whole = Documents.from_ids(ids)
    span = Span.of_rank(2, 4, whole)
    assert (span.start, span.length, span.whole) == (8, 4, whole)
    assert span.own is not None
    assert span.own.position_BL.tolist() == [row[8:] for row in counted(ids)]
    for alone in (Span.alone(12), Span.of_rank(0, 12, None)):
        assert (alone.start, alone.length, alone.whole, alone.own) == (0, 12, None, None)


@pytest.mark.parametrize("start", [0, 1, 14, 15, 16, 30, 59])
@pytest.mark.parametrize("width", [0, 1, 5, 40])
def test_masks_keep_what_belongs_to_the_document(start: int, width: int) -> None:
    ids = EDGES
    span = Span(start, LENGTH - start, None, Documents.from_ids(ids).stretch(start, LENGTH))
    ones = torch.ones(2, len(ids), width)
    history, outputs = span.mask_history(ones), span.mask_outputs(ones[..., : LENGTH - start])
    for row, places in enumerate(counted(ids)):
        for d in range(
            1, width + 1
        ):  # the position `d` before the span, one of no row if d > start
            mine = places[start] >= d
            assert history[:, row, width - d].tolist() == [float(mine)] * 2
        for t in range(outputs.shape[-1]):
            begun_before = places[start + t] > t
            assert outputs[:, row, t].tolist() == [float(begun_before)] * 2
    plain = Span(start, LENGTH - start)
    assert torch.equal(plain.mask_history(ones), ones)
    assert torch.equal(plain.mask_outputs(ones), ones)


def test_masks_let_nothing_through() -> None:
    """Not even what no product with 0 could stop."""
    span = Span.of_rank(1, 4, Documents.from_ids(torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2]])))
    poison = torch.full((1, 1, 4), torch.inf)
    assert span.mask_history(poison).flatten().tolist() == [0.0, 0.0, torch.inf, torch.inf]
    assert span.mask_outputs(poison).flatten().tolist() == [torch.inf, torch.inf, 0.0, 0.0]


def test_rotary_positions_count_from_the_start_of_each_document() -> None:
    device = torch.device("cpu")
    assert positions(Span(5, 3), device).tolist() == [5, 6, 7]
    documents = Documents.from_ids(EDGES).stretch(10, 20)
    found = positions(Span(10, 10, own=documents), device)
    assert found.shape == (4, 1, 10)
    assert found[:, 0].tolist() == [row[10:20] for row in counted(EDGES)]


def test_one_rank_has_nothing_to_reach() -> None:
    x, context = draw(2, 3, 4), OneRank()
    assert torch.equal(context.halo(x, 5).wait(), torch.zeros(2, 3, 5, dtype=torch.float64))
    assert context.halo(x.float(), 2, dim=0).wait().shape == (2, 3, 4)
    assert context.halo(x.float(), 2).wait().dtype == torch.float32
    assert torch.equal(context.whole(x, dim=1), x)
    assert torch.equal(context.carry(x, lambda *_: x).wait(), torch.zeros_like(x))
    assert torch.equal(context.switch(x, 0, 2), x)
    assert torch.equal(context.sum(x), x)


def test_taps_of_a_share_of_the_channels() -> None:
    taps = draw(3, 5)
    assert channel_taps(taps, 12, ALL_CHANNELS) is taps
    share = channel_taps(taps, 12, slice(3, 6))
    assert torch.equal(share, torch.stack([taps[0], taps[1], taps[1]]))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("taps", [1, 3, 20])
@pytest.mark.parametrize("size", SIZES)
def test_short_filters_reach_across(size: int, taps: int, name: str) -> None:
    """Over as many ranks as their taps span; and what a second filter needs of the first."""
    ids, ahead = LAYOUTS[name], 6
    rows = 2 if ids is None else len(ids)
    z, w = draw(4, rows, LENGTH).requires_grad_(), draw(2, taps, seed=1).requires_grad_()
    whole = causal_fir(z, w, of_ids(ids))

    def work(context: ThreadContext) -> tuple[Tensor, Tensor]:
        span = Span.of_rank(context.rank, LENGTH // size, of_ids(ids))
        assert fir_across(context, stretch(context, z), w, span)[1].shape[-1] == 0
        return fir_across(context, stretch(context, z), w, span, ahead)

    outputs = on_threads(size, work)
    close(torch.cat([y for y, _ in outputs], dim=-1), whole)
    found, expected = torch.cat([before for _, before in outputs], dim=-1), []
    for start in range(0, LENGTH, LENGTH // size):
        window = torch.nn.functional.pad(whole, (ahead, 0))[..., start : start + ahead]
        for row, places in enumerate(counted(torch.zeros(rows, LENGTH) if ids is None else ids)):
            foreign = torch.arange(ahead, 0, -1) > places[start]
            expected.append(window[:, row : row + 1].masked_fill(foreign, 0.0))
    parts = [torch.cat(expected[at : at + rows], dim=1) for at in range(0, len(expected), rows)]
    mixed = torch.cat(parts, dim=-1)
    close(found, mixed)
    mine = torch.cat([y for y, _ in outputs], dim=-1).cos().sum() + found.sin().sum()
    gradients_close(mine, whole.cos().sum() + mixed.sin().sum(), (z, w))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("turning", [False, True])
def test_states_reach_across(turning: bool, size: int, name: str) -> None:
    ids = LAYOUTS[name]
    rows = 2 if ids is None else len(ids)
    log_rate, residue, skip = draw(4, 3, seed=1) - 3.0, draw(4, 3, seed=2), draw(4, seed=3)
    z = draw(4, rows, LENGTH)
    more = (draw(4, 3, seed=5), draw(4, 3, seed=6)) if turning else None
    inputs = tuple(x.requires_grad_() for x in (z, log_rate, residue, skip, *(more or ())))
    whole = modal_conv(z, log_rate, residue, skip, 8, of_ids(ids), turning=more)

    def work(context: ThreadContext) -> Tensor:
        span = Span.of_rank(context.rank, LENGTH // size, of_ids(ids))
        part, across = stretch(context, z), state_across(context, span)
        return modal_conv(part, log_rate, residue, skip, 8, span.own, across, more)

    parts = torch.cat(on_threads(size, work), dim=-1)
    close(parts, whole)
    gradients_close(parts.cos().sum(), whole.cos().sum(), inputs)


def test_all_to_all_convolves_the_whole_sequence_of_a_share() -> None:
    z, documents = draw(6, 3, LENGTH), Documents.from_ids(drawn(3, LENGTH, seed=2))
    seen: dict[int, slice] = {}

    def work(context: ThreadContext) -> Tensor:
        def convolve(part: Tensor, channels: slice, given: Documents | None) -> Tensor:
            assert given is documents
            assert torch.equal(part, z[channels])
            seen[context.rank] = channels
            return part.cumsum(-1)

        span = Span.of_rank(context.rank, LENGTH // 3, documents)
        return over_channels(context, convolve, stretch(context, z), span)

    assert torch.equal(torch.cat(on_threads(3, work), dim=-1), z.cumsum(-1))
    assert seen == {0: slice(0, 2), 1: slice(2, 4), 2: slice(4, 6)}


PAIRS = [(sign, exchange) for sign, entry in SIGNS.items() for exchange in entry.exchanges]


@pytest.mark.parametrize(
    "ids", [None, EDGES, drawn(4, LENGTH, seed=6)], ids=["no", "edges", "drawn"]
)
@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize(("sign", "exchange"), PAIRS)
def test_every_layer_by_every_exchange(
    sign: str, exchange: str, causal: bool, size: int, ids: Tensor | None
) -> None:
    """Outputs and every gradient are those of the layer on the whole sequence."""
    changes = {"num_heads": 4, "attention_window": 24, "hyena_output_gate": True}
    split_is_whole(small_config(sign, causal=causal, **changes), exchange, size, ids)


@pytest.mark.parametrize(
    ("sign", "changes"),
    [
        ("S", {"se_filter_length": 1}),
        ("S", {"se_filter_length": 30}),
        ("M", {"mr_filter_length": 1}),
        ("M", {"mr_filter_length": 61}),
        ("W", {"attention_window": 1}),
        ("W", {"attention_window": 1000}),
    ],
)
def test_layers_that_reach_nowhere_or_everywhere(sign: str, changes: dict[str, int]) -> None:
    split_is_whole(small_config(sign, num_heads=4, **changes), "halo", 4, EDGES)
    split_is_whole(small_config(sign, num_heads=4, causal=False, **changes), "halo", 4, EDGES)


def split_is_whole(config: HyenaGLTConfig, exchange: str, size: int, ids: Tensor | None) -> None:
    """The layer on `size` ranks against the layer on one."""
    whole, documents = small_mixer(config), of_ids(ids)
    x = draw(LENGTH, 4, 8, seed=5).requires_grad_()
    expected = whole(x, Span(0, LENGTH, documents, documents))
    shared: dict[str, Tensor] = dict(whole.named_parameters())

    def work(context: ThreadContext) -> Tensor:
        provider = ThreadProvider(context, exchange)
        layer: nn.Module = mixer_class(config.signs[0], config.causal)(config, provider).double()
        span = Span.of_rank(context.rank, LENGTH // size, documents)
        out: Tensor = functional_call(layer, shared, (stretch(context, x, dim=0), span))
        return out

    found = torch.cat(on_threads(size, work))
    close(found, expected)
    gradients_close(found.cos().sum(), expected.cos().sum(), (x, *shared.values()))
