"""`G`: its start, its branches, its gate, and what none of them may see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from megatron_hyena import HyenaGLT
from megatron_hyena.errors import UserError
from megatron_hyena.layers.genomic import (
    ConservationFilter,
    GenomicHyenaOperator,
    MotifConvolution,
    StructureEncoder,
)
from megatron_hyena.layers.hyena_order import HyenaOperator
from megatron_hyena.layers.mixer import Mixer
from megatron_hyena.layers.parameter import cut_of, initialise
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.hyena_glt import mixer_class
from megatron_hyena.ops.documents import Documents
from tests.oracles import operators
from tests.oracles.documents import numbered, runs
from tests.oracles.drawing import disturb, draw, draw_bytes, small_config, small_mixer, weights
from tests.oracles.threads import ThreadContext, ThreadProvider, on_threads

LENGTH = 60
EDGES = numbered(LENGTH, [[1, 20, 21, 59], [15, 45]])


def scores(length: int = LENGTH, batch: int = 2) -> Tensor:
    """About a third unknown; among the rest a 0 and large ones of both signs."""
    score = 3 * draw(batch, length, seed=8)
    score[draw(batch, length, seed=9) > 0.5] = math.nan
    score[:, 3] = 0.0
    score[:, 4] = -20.0
    assert 0.2 < score.isnan().double().mean() < 0.45
    return score


def with_scores(score: Tensor, documents: Documents | None = None) -> Span:
    return Span(0, score.shape[1], documents, documents, {"conservation": score})


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("filter_name", ["implicit", "genomic"])
def test_a_new_layer_computes_what_h_computes(filter_name: str, scored: bool) -> None:
    """Bit for bit, outputs and the gradients of all that both have."""
    config = small_config("H", hyena_filter=filter_name, hyena_output_gate=True)
    plain = HyenaOperator(config, DenseProvider())
    genomic = GenomicHyenaOperator(replace(config, pattern="G"), DenseProvider())
    for layer in (plain, genomic):
        initialise(layer, 4, 0, 1)
    x, span = draw(LENGTH, 2, 8).float(), with_scores(scores()) if scored else None
    outputs = [layer(x, span) for layer in (plain, genomic)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.cos().sum().backward()
    theirs, ours = (
        {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
        for layer in (plain, genomic)
    )
    assert theirs.keys() == dict(plain.named_parameters()).keys()
    for name, gradient in theirs.items():
        assert torch.equal(gradient, ours[name]), name
    # What opens the branches and the gate learns from the first step on.
    assert bool(ours["motif.scale"].all()) and bool(ours["structure.scale"].all())
    assert bool(ours["conservation.weight"].all()) is scored


@pytest.mark.parametrize("changes", [{}, {"hyena_order": 1}, {"hyena_order": 3}])
def test_with_scores_it_equals_its_equation(changes: dict) -> None:
    config = small_config("G", hyena_output_gate=True, **changes)
    layer, x = small_mixer(config), draw(LENGTH, 2, 8, seed=5)
    expected = operators.genomic(
        x.numpy(), weights(layer), config.hyena_order, 251, scores().numpy()
    )
    found = layer(x, with_scores(scores())).detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(scale, 1.0))
    without = layer(x).detach().numpy()
    assert np.abs(without - found).max() > 1e-2 * scale


@pytest.mark.parametrize("taps", [2, 8, 9, 40])
@pytest.mark.parametrize("scales", [1, 7])
def test_other_lengths_and_numbers_of_scales(taps: int, scales: int) -> None:
    config = small_config("G", motif_length=taps, structure_scales=scales, motifs=("CG",))
    layer, x = small_mixer(config), draw(90, 2, 8, seed=5)
    expected = operators.genomic(x.numpy(), weights(layer), config.hyena_order, 251)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("filter_size", [6, 30, 400])
@pytest.mark.parametrize("sign", "HG")
def test_an_explicit_bank_equals_its_equation(sign: str, filter_size: int) -> None:
    config = small_config(sign, hyena_filter="genomic", hyena_filter_size=filter_size)
    layer, x = small_mixer(config), draw(LENGTH, 2, 8, seed=5)
    given = (x.numpy(), weights(layer), config.hyena_order, 251)
    expected = operators.hyena_order(*given) if sign == "H" else operators.genomic(*given)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-11)


def test_an_unknown_score_is_no_score_to_the_bit() -> None:
    """And a known one changes its own position only."""
    layer, x = small_mixer(small_config("G")), draw(LENGTH, 2, 8)
    nothing = torch.full((2, LENGTH), math.nan, dtype=torch.float64)
    without = layer(x)
    assert torch.equal(layer(x, with_scores(nothing)), without)
    assert torch.equal(layer(x, with_scores(nothing.float())), without)
    for t in (0, 30, 59):
        one = nothing.clone()
        one[1, t] = 0.4
        changed = (layer(x, with_scores(one)) != without).any(-1)
        assert changed.nonzero().tolist() == [[t, 1]]


@pytest.mark.parametrize("shape", [(2, 1), (1, LENGTH), (2, LENGTH - 1), (LENGTH, 2), (LENGTH,)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Some of these would be spread over all positions without a word."""
    layer, x = small_mixer(small_config("G")), draw(LENGTH, 2, 8)
    span = Span(0, LENGTH, tracks={"conservation": torch.zeros(shape)})
    with pytest.raises(
        UserError, match=r"track 'conservation' has shape .*, the positions \[2, 60"
    ):
        layer(x, span)


def test_the_gate_never_silences_and_at_most_doubles() -> None:
    """A score of 0 under new weights, or any score under any weights."""
    gate = ConservationFilter(small_config("G"), DenseProvider()).double()
    initialise(gate, 0, 0, 1)
    y, score = draw(8, 2, LENGTH), scores()
    assert torch.equal(gate(y, score), y)
    disturb(gate)
    factor = gate(torch.ones_like(y), score)
    assert (factor > 0).all() and (factor < 2).all()
    assert torch.equal(factor[:, score.isnan()], torch.ones(8, int(score.isnan().sum())).double())
    assert (factor[:, ~score.isnan()] != 1).all()


def test_gradients_of_the_gate_are_those_of_its_equation() -> None:
    gate = ConservationFilter(small_config("G"), DenseProvider()).double()
    initialise(gate, 0, 0, 1)
    disturb(gate)
    y, score = draw(8, 2, 9).requires_grad_(), scores(9)

    def run(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values = {"weight": weight, "bias": bias}
        return torch.func.functional_call(gate, values, (y, score))

    values = [p.detach().clone().requires_grad_() for p in gate.parameters()]
    assert torch.autograd.gradcheck(run, (y, *values))
    run(y, *values).sum().backward()
    assert all(v.grad is not None and v.grad.isfinite().all() and v.grad.all() for v in values)


def test_every_parameter_learns_once_the_branches_are_open() -> None:
    layer = small_mixer(small_config("G", hyena_output_gate=True))
    layer(draw(LENGTH, 2, 8), with_scores(scores())).cos().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).any(), name


def test_without_a_track_the_gate_has_gradients_of_zero() -> None:
    """Not none: engines that share out gradients want one for each parameter."""
    layer = small_mixer(small_config("G"))
    layer(draw(LENGTH, 2, 8)).sum().backward()
    for parameter in layer.get_submodule("conservation").parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_branches_see_nothing_later_exactly() -> None:
    """Their Jacobians are zero above the diagonal, and dense below for `structure`."""
    config = small_config("G")
    for branch, reach in ((MotifConvolution, 10), (StructureEncoder, 24)):
        part = branch(config, DenseProvider())
        initialise(part, 0, 0, 1)
        disturb(part.double())
        span = Span.alone(24)
        found = jacobian(lambda v, part=part, span=span: part(v, span), draw(8, 1, 24))
        slopes = found[:, 0].diagonal(dim1=0, dim2=2)[:, 0]  # [t, source, channel]
        assert not found.sum((3, 4, 5)).isnan().any()
        for t in range(24):
            assert not slopes[t, t + 1 :].any()
            assert (slopes[t, max(0, t - reach + 1) : t + 1] != 0).all()


def test_the_layer_is_causal_with_scores() -> None:
    """The transform of the long filters rounds: 1e-12."""
    layer, score = small_mixer(small_config("G")), scores(24, 1)
    found = jacobian(lambda x: layer(x, with_scores(score)), draw(24, 1, 8))
    slopes = found[:, 0, :, :, 0].abs().amax((1, 3))
    assert slopes.triu(1).max() < 1e-12 * slopes.max()
    assert (slopes.tril().diagonal() > 1e-3).all()


def test_documents_keep_to_themselves_to_the_bit() -> None:
    layer, x, score = small_mixer(small_config("G")), draw(LENGTH, 2, 8), scores()
    documents = Documents.from_ids(EDGES)
    packed = layer(x, with_scores(score, documents))
    for row, start, stop in runs(EDGES):
        rows, here = slice(row, row + 1), slice(start, stop)
        alone = layer(x[here, rows], with_scores(score[rows, here]))
        torch.testing.assert_close(packed[here, rows], alone, rtol=1e-12, atol=1e-12)
        other = x.clone()
        other[here, rows] += 1
        changed = layer(other, with_scores(score, documents)) != packed
        assert changed[here, rows].any(-1).all()
        changed[here, rows] = False
        assert not changed.any()


@pytest.mark.parametrize("ids", [None, EDGES], ids=["whole", "packed"])
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_a_sequence_hold_their_own_scores(size: int, ids: Tensor | None) -> None:
    config, score = small_config("G", motif_length=33), scores()
    whole, x = small_mixer(config), draw(LENGTH, 2, 8, seed=5).requires_grad_()
    documents = None if ids is None else Documents.from_ids(ids)
    expected = whole(x, with_scores(score, documents))
    shared: dict[str, Tensor] = dict(whole.named_parameters())

    def work(context: ThreadContext) -> Tensor:
        layer = mixer_class("G")(config, ThreadProvider(context, "all_to_all")).double()
        own = score.chunk(size, dim=1)[context.rank]
        span = replace(
            Span.of_rank(context.rank, LENGTH // size, documents), tracks={"conservation": own}
        )
        mine = x.chunk(size, dim=0)[context.rank]
        found: Tensor = torch.func.functional_call(layer, shared, (mine, span))
        return found

    found = torch.cat(on_threads(size, work))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = (x, *shared.values())
    mine, theirs = (
        torch.autograd.grad(y.cos().sum(), inputs, retain_graph=True) for y in (found, expected)
    )
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        assert other.any()


def test_first_weights_of_the_branches() -> None:
    layer = mixer_class("G")(small_config("G", hidden_size=512, motifs=("CG",)), DenseProvider())
    initialise(layer, 0, 0, 1)
    w = dict(layer.named_parameters())
    distances = torch.exp(-w["structure.log_rate"])
    torch.testing.assert_close(distances[0], torch.tensor([8.0, 64.0, 512.0, 4096.0]))
    assert torch.equal(distances, distances[:1].expand(512, 4))
    assert w["structure.weight"].std().item() == pytest.approx(0.5, rel=0.05)
    for name in ("motif.scale", "structure.scale", "conservation.weight", "conservation.bias"):
        assert not w[name].any()
    roles = {name: cut_of(p).role for name, p in w.items() if "." in name and "filters" not in name}
    assert {name for name, role in roles.items() if role == "vector"} == {
        "conservation.weight",
        "conservation.bias",
    }
    assert {role for name, role in roles.items() if "conservation" not in name} == {"filter"}
    assert all(cut_of(p).dim == 0 for name, p in w.items() if name in roles)


def test_a_mean_of_a_constant_is_the_constant_in_the_end() -> None:
    """However far it reaches: the weights of a mean add up to 1."""
    part = StructureEncoder(small_config("G", structure_scales=1), DenseProvider())
    initialise(part, 0, 0, 1)
    with torch.no_grad():
        part.double()
        part.log_rate.copy_(-torch.linspace(0, math.log(400), 8)[:, None])
        part.weight.fill_(1.0)
        part.scale.fill_(1.0)
        found = part(torch.ones(8, 1, 9000, dtype=torch.float64), Span.alone(9000))
    torch.testing.assert_close(found[..., -1], torch.ones(8, 1).double(), rtol=1e-9, atol=0)
    assert (found[1:, 0, 0] < 0.9).all()


def test_bf16_leaves_gate_and_branches_in_fp32() -> None:
    layer: Mixer = small_mixer(small_config("G", hidden_size=64, init_std=0.125)).float()
    x, score = draw(200, 2, 64).to(torch.bfloat16), scores(200).float()
    exact = layer(x.float(), with_scores(score))
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x, with_scores(score))
    low.float().sum().backward()
    assert low.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    assert (low.float() - exact).norm() / exact.norm() < 1.5e-2


def test_training_opens_the_branches() -> None:
    """All channels of both, and the loss falls."""
    config = small_config("G", hidden_size=16, motifs=("TATAWAW",), init_std=0.1)
    model, ids = HyenaGLT(config, seed=1), draw_bytes(4, 64) % 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(ids, ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for branch in ("motif", "structure"):
        assert model.get_parameter(f"blocks.0.mixer.{branch}.scale").abs().min() > 1e-3
