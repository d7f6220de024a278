"""States of a layer: those of the equations, one for each byte, whole or in pieces."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena.errors import UserError
from megatron_hyena.model.states import layer_name, layer_states
from megatron_hyena.model.stream import Stream
from tests.oracles import language_model
from tests.oracles.drawing import small_config, small_model, weights
from tests.oracles.merged_models import NESTED, dna, lively_model, merged_config, record

LENGTH = 43


def test_states_of_each_block_are_those_of_a_model_that_ends_there() -> None:
    """The oracle's residual stream behind n blocks, which a final norm of ones only scales."""
    config = small_config("SLM")
    model, ids = small_model(config).eval(), dna(2, LENGTH)
    w = weights(model)
    for count in (1, 2, 3):
        shorter = small_config("SLM"[:count])
        wanted = language_model.hidden_states(ids.numpy(), w, shorter)
        found = layer_states(model, ids, count - 1).transpose(0, 1)
        normed = model.final_norm(found).detach()
        assert float((normed - torch.from_numpy(wanted)).abs().max()) < 1e-10
    embedded = torch.from_numpy(w["embedding.weight"][ids.numpy()])
    assert torch.equal(layer_states(model, ids, "embedding"), embedded)
    whole = model(ids).last_hidden_state
    assert torch.equal(layer_states(model, ids, -1), whole)
    assert not torch.equal(layer_states(model, ids, 2), whole)


def test_inside_of_merged_stages_a_byte_has_the_state_of_its_chunk() -> None:
    """By the places of the chunks' openings alone, outer and inner."""
    ids = dna(2, 48)
    model = lively_model(merged_config(NESTED), ids)
    notes = record(model)
    with torch.no_grad():
        model(ids)
    (outer,), (inner,) = notes[0], notes[1]
    states = {n: layer_states(model, ids, n) for n in range(5)}
    for row in range(2):
        slot = outer.merge.chunks.index()[:, row].tolist()
        deep = inner.merge.chunks.index()[:, row].tolist()
        for byte in range(48):
            # Blocks of S(S(M)S)S in order: 1 and 3 of the outer stage, 2 of the inner.
            assert outer.z is not None and inner.z is not None
            assert torch.equal(states[3][row, byte], outer.z[slot[byte], row])
            assert torch.equal(states[1][row, byte], inner.x[slot[byte], row])
            assert torch.equal(states[2][row, byte], inner.z[deep[slot[byte]], row])
    openings = len({tuple(state.tolist()) for state in states[2][0]})
    assert 1 < openings < len({tuple(state.tolist()) for state in states[3][0]}) < 48


@pytest.mark.parametrize("size", [7, 31])
@pytest.mark.parametrize("pattern", ["SMLW", "SA", "S(M)S", NESTED])
def test_pieces_have_the_states_of_the_whole(pattern: str, size: int) -> None:
    ids = dna(2, LENGTH)
    merged = "(" in pattern
    model = lively_model(merged_config(pattern), ids) if merged else small_model(
        small_config(pattern)
    )  # fmt: skip
    for layer in (len(model.blocks) // 2, "embedding")[: 1 + (size > 7)]:
        stream = Stream(model.eval(), layer)
        pieces = [stream.feed(piece).layer_state for piece in ids.split(size, dim=1)]
        found = torch.cat([piece for piece in pieces if piece is not None], dim=1)
        assert float((found - layer_states(model, ids, layer)).abs().max()) < 1e-10
    assert Stream(model).feed(ids).layer_state is None


def test_layers_by_name_and_number() -> None:
    model = small_model(small_config("SL"))
    assert [layer_name(name, model) for name in ("-1", -1, "final")] == ["final"] * 3
    assert [layer_name(name, model) for name in ("1", 1, "block.1")] == ["block.1"] * 3
    for wrong in (2, -2, "block", "head"):
        with pytest.raises(UserError, match=r"no layer '.*'; give embedding, block\.0 to block\.1"):
            layer_states(model, dna(1, 4), wrong)
