"""Mixers of models that are not causal: against their equations, and what each position sees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from megatron_hyena.config import SIGNS, HyenaGLTConfig
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.parameter import initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.hyena_glt import mixer_class
from megatron_hyena.ops.attention_both import Keys, attention_both
from megatron_hyena.ops.documents import Documents
from tests.oracles import language_model, operators
from tests.oracles.documents import drawn, numbered, runs
from tests.oracles.drawing import draw, open_branches, small_config, small_mixer, weights
from tests.oracles.operators import Array, Weights, leave, rotated

LENGTH = 29
ROWS = numbered(LENGTH, [[], [1, 9, 10, 20], [28], list(range(1, LENGTH))])
TWICE = [sign for sign in SIGNS if sign not in "AW"]


def both_ways(sign: str, **changes: object) -> HyenaGLTConfig:
    values: dict[str, object] = {"attention_window": 6, "hyena_output_gate": True}
    return small_config(sign, causal=False, **{**values, **changes})


def span_of(ids: Tensor) -> Span:
    documents = Documents.from_ids(ids)
    return Span(0, ids.shape[1], documents, documents)


def attention_to_both_sides(x: Array, w: Weights, config: HyenaGLTConfig, reach: int) -> Array:
    """Of one document [L, 1, h], one query and one key after the other."""
    length, _, width = x.shape
    dim = width // config.num_heads
    out = np.zeros((width, 1, length))
    for head in range(config.num_heads):
        rows = w["projection"][3 * dim * head : 3 * dim * (head + 1)]
        q, k, v = np.split(x[:, 0] @ rows.T, 3, axis=1)
        for t in range(length):
            seen = [s for s in range(length) if abs(s - t) < reach]
            scores = np.array(
                [
                    rotated(q[t], t, config.rope_base)
                    @ rotated(k[s], s, config.rope_base)
                    / math.sqrt(dim)
                    for s in seen
                ]
            )
            share = np.exp(scores - scores.max())
            out[head * dim : (head + 1) * dim, 0, t] = share @ v[seen] / share.sum()
    return leave(out, w)


def equation(sign: str, x: Array, w: Weights, config: HyenaGLTConfig) -> Array:
    """y of one document."""
    if sign in "AW":
        reach = config.attention_window if sign == "W" else len(x)
        return attention_to_both_sides(x, w, config, reach)
    ahead, back = (language_model.under(w, f"{name}_mixer.") for name in ("forward", "backward"))
    there = language_model.mixer(sign, x, ahead, config)
    return (there + language_model.mixer(sign, x[::-1], back, config)[::-1]) / math.sqrt(2)


@pytest.mark.parametrize("ids", [ROWS, drawn(4, LENGTH, seed=8)], ids=["edges", "drawn"])
@pytest.mark.parametrize("sign", SIGNS)
def test_every_document_is_its_equation(sign: str, ids: Tensor) -> None:
    config = both_ways(sign, hyena_output_gate=False)
    mixer, x = small_mixer(config), draw(LENGTH, len(ids), 8)
    found = mixer(x, span_of(ids)).detach().numpy()
    w = weights(mixer)
    for row, start, stop in runs(ids):
        part = x[start:stop, row : row + 1].numpy()
        expected = equation(sign, part, w, config)
        np.testing.assert_allclose(found[start:stop, row : row + 1], expected, atol=1e-12)


def test_scores_stay_at_their_positions() -> None:
    """The conservation that the second direction of `G` reads is turned round with the bases."""
    config = both_ways("G", hyena_output_gate=False)
    mixer, x = small_mixer(config), draw(LENGTH, 2, 8)
    open_branches(mixer)
    score = draw(2, LENGTH, seed=3).masked_fill(draw(2, LENGTH, seed=4) > 1.0, float("nan"))
    span = Span(0, LENGTH, tracks={"conservation": score})
    ahead, back = (
        language_model.under(weights(mixer), f"{name}_mixer.") for name in ("forward", "backward")
    )
    sizes = config.hyena_order, config.max_sequence_length
    there = operators.genomic(x.numpy(), ahead, *sizes, score.numpy())
    again = operators.genomic(x.numpy()[::-1], back, *sizes, score.numpy()[:, ::-1])[::-1]
    found = mixer(x, span).detach().numpy()
    np.testing.assert_allclose(found, (there + again) / math.sqrt(2), atol=1e-12)


@pytest.mark.parametrize("sign", SIGNS)
def test_a_position_sees_its_whole_document_and_nothing_else(sign: str) -> None:
    ids = numbered(15, [[8], [1, 14], list(range(1, 15))])
    mixer = small_mixer(both_ways(sign, attention_window=20, se_filter_length=20))
    span = span_of(ids)
    size = jacobian(lambda x: mixer(x, span).sum(-1), draw(15, 3, 8)).abs().sum(-1)
    expected = torch.zeros(15, 3, 15, 3, dtype=torch.bool)  # outputs, inputs
    for row, start, stop in runs(ids):
        expected[start:stop, row, start:stop, row] = True
    assert torch.equal(size > 0, expected)


@pytest.mark.parametrize("sign", TWICE)
def test_swapped_directions_mirror_the_output(sign: str) -> None:
    """To the last bit where no rounding differs: the same operators see the same numbers."""
    config, ids = both_ways(sign), drawn(3, LENGTH, seed=4)
    mixer, x = small_mixer(config), draw(LENGTH, 3, 8)
    mirrored = small_mixer(config)
    names = {"forward_mixer": "backward_mixer", "backward_mixer": "forward_mixer"}
    state = mixer.state_dict()
    swapped = {
        f"{names[name.partition('.')[0]]}.{name.partition('.')[2]}": value
        for name, value in state.items()
    }
    mirrored.load_state_dict(swapped)
    found = mirrored(x.flip(0), span_of(ids.flip(1))).flip(0)
    expected = mixer(x, span_of(ids))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert not torch.allclose(mixer(x.flip(0), span_of(ids.flip(1))).flip(0), expected)


@pytest.mark.parametrize("sign", TWICE)
def test_the_output_varies_as_one_mixers(sign: str) -> None:
    config = small_config(sign, hidden_size=64, init_std=0.125)
    wide = torch.randn(200, 8, 64, generator=torch.Generator().manual_seed(1))

    def spread(causal: bool) -> float:
        mixer: Mixer = mixer_class(sign, causal)(config, DenseProvider())
        initialise(mixer, 3, 0, 1)
        return float(mixer(wide).detach().std())

    assert 0.8 < spread(False) / spread(True) < 1.25


@pytest.mark.parametrize("window", [None, 1, 2, 7, 19, 20, 40])
@pytest.mark.parametrize("before", [0, 3, 11])
def test_attention_against_its_sum(window: int | None, before: int) -> None:
    """Queries in the middle of their keys, absent keys, documents."""
    q, k, v = (draw(3, 2, n, 4, seed=s) for s, n in enumerate((9, 20, 20)))
    documents = Documents.from_ids(drawn(3, 20, seed=2))
    present = torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) < 0.7
    present[:, before : before + 9] |= window == 1  # a query sees at least itself
    ids = (documents.position_BL == 0).cumsum(1)
    found = attention_both(q, Keys(k, v, before, documents, present), window)
    assert torch.isfinite(found).all()
    compared = 0
    for row in range(3):
        for t in range(9):
            at = before + t
            seen = [
                s
                for s in range(20)
                if present[row, s]
                and ids[row, s] == ids[row, at]
                and (window is None or abs(s - at) < window)
            ]
            if seen:
                scores = k[row, :, seen] @ q[row, :, t, :, None] / 2.0
                expected = (scores.softmax(1) * v[row, :, seen]).sum(1)
                torch.testing.assert_close(found[row, :, t], expected, rtol=1e-12, atol=1e-12)
                compared += 1
    assert compared > 15
    alone = attention_both(q, Keys(k, v, before), window)
    assert window == 1 or not torch.allclose(alone, found)


@pytest.mark.parametrize("window", [None, 4])
def test_gradients_of_attention(window: int | None) -> None:
    q, k, v = (draw(1, 2, n, 4, seed=s).requires_grad_() for s, n in enumerate((5, 9, 9)))
    documents = Documents.from_ids(numbered(9, [[4]]))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_both(q, Keys(k, v, 2, documents), window)

    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_documents_and_spans_read_from_the_right() -> None:
    ids = drawn(4, LENGTH, seed=3)
    found = Documents.from_ids(ids).reversed().position_BL
    assert torch.equal(found, Documents.from_ids(ids.flip(1)).position_BL)
    whole = Documents.from_ids(numbered(12, [[5], [3, 11]]))
    places = torch.arange(24).view(2, 12)
    track = torch.arange(8.0).view(2, 4)
    span = Span(8, 4, whole, whole.stretch(8, 12), {"one": track}, places)
    turned = span.reversed(3)
    assert (turned.start, turned.length, turned.whole) == (0, 4, whole.reversed())
    assert turned.own is not None and turned.places is not None
    assert torch.equal(turned.own.position_BL, whole.reversed().position_BL[:, :4])
    assert torch.equal(turned.tracks["one"], track.flip(1))
    assert torch.equal(turned.places, places.flip(1))
    assert span.reversed(3) is turned


@pytest.mark.parametrize("sign", SIGNS)
def test_bf16_in_bf16_out_close_to_fp32(sign: str) -> None:
    config = both_ways(sign, hidden_size=64, init_std=0.125)
    mixer: Mixer = mixer_class(sign, causal=False)(config, DenseProvider())
    initialise(mixer, 0, 0, 1)
    x, span = draw(LENGTH, len(ROWS), 64).to(torch.bfloat16), span_of(ROWS)
    exact = mixer(x.float(), span)
    with torch.autocast("cpu", torch.bfloat16):
        low = mixer(x, span)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).norm() / exact.norm() < 1.5e-2
