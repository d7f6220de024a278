"""What surrounds operators, and the list of public names."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import megatron_hyena
from megatron_hyena import (
    FeedForward,
    HyenaGLTConfig,
    HyenaGLTEmbedding,
    ResidualHyenaLayer,
    RotaryPositionalEmbedding,
    StripedHyenaOperator,
)
from megatron_hyena.errors import UserError
from megatron_hyena.layers.provider import DenseProvider
from megatron_hyena.layers.span import Span
from megatron_hyena.model.hyena_glt import Block
from tests.oracles import language_model, operators
from tests.oracles.drawing import disturb, draw, weights

D, LONGEST = 16, 64
SMALL = HyenaGLTConfig(
    pattern="[H]2", hidden_size=D, num_heads=4, hyena_filter_order=8, max_sequence_length=LONGEST
)


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


def test_a_residual_layer_is_the_models_block_to_the_bit() -> None:
    layer = ResidualHyenaLayer(SMALL)
    disturb(layer)
    block = Block("H", SMALL, DenseProvider())
    block.load_state_dict(
        {name.replace(".layer.", "."): p for name, p in layer.block.state_dict().items()}
    )
    x = torch.randn(2, 50, D)
    expected = block(x.transpose(0, 1), Span.alone(50)).transpose(0, 1)
    assert torch.equal(layer(x), expected)


def test_dropout_acts_on_both_branches_in_training_alone() -> None:
    layer = ResidualHyenaLayer(SMALL, dropout=1.0)
    disturb(layer)
    x = torch.randn(1, 9, D)
    assert torch.equal(layer.train()(x), x)
    assert not torch.allclose(layer.eval()(x), x)
    without = HyenaGLTConfig(pattern="H", hidden_size=D, num_heads=4, ffn_hidden_size=-1)
    assert ResidualHyenaLayer(without, dropout=0.5)(x).shape == x.shape


def test_embedding_adds_a_vector_for_the_type_and_none_for_the_place() -> None:
    embedding = HyenaGLTEmbedding(SMALL)
    disturb(embedding)
    ids = torch.tensor([[65, 67, 65], [71, 84, 65]])
    tokens, types = embedding.token_embedding.weight, embedding.type_embedding.weight
    plain = embedding(ids)
    assert torch.equal(plain[0, 0], tokens[65] + types[0])
    assert torch.equal(plain[0, 0], plain[1, 2])
    rows = embedding(ids, torch.tensor([1, 2]))
    assert torch.equal(rows, tokens[ids] + types[[1, 2]][:, None])
    each = torch.tensor([[0, 1, 2], [3, 3, 0]])
    assert torch.equal(embedding(ids, each), tokens[ids] + types[each])
    other = HyenaGLTEmbedding(replace(SMALL, type_embedding="protein"))
    disturb(other)
    assert torch.equal(other(ids), other(ids, torch.tensor([2, 2])))
    with pytest.raises(UserError, match="found 0 to 4"):
        embedding(ids, torch.tensor([0, 4]))
    with pytest.raises(UserError, match=r"\[2, 2\] does not fit ids of shape \[2, 3\]"):
        embedding(ids, torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(UserError, match="token id 256"):
        embedding(ids + 172)  # T is 84


def test_feed_forward_equals_its_equation() -> None:
    mlp = FeedForward(D, 24).double()
    x = draw(2, 5, D)
    expected = language_model.gated_mlp(x.numpy(), weights(mlp.mlp), "gelu")
    np.testing.assert_allclose(mlp(x).detach().numpy(), expected, atol=1e-12)
    assert FeedForward(D).mlp.output.shape == (D, 64)


def test_rotary_positions_turn_and_do_not_stretch() -> None:
    rope, x = RotaryPositionalEmbedding(8, base=100.0), draw(2, 3, 7, 8)
    y = rope(x, start=5)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    for t in range(7):
        expected = operators.rotated(x[1, 2, t].numpy(), 5 + t, 100.0)
        np.testing.assert_allclose(y[1, 2, t].numpy(), expected, atol=1e-12)
    with pytest.raises(UserError, match="heads of 6"):
        rope(draw(2, 6))


def test_every_public_name_can_be_had() -> None:
    for name in megatron_hyena.__all__:
        assert getattr(megatron_hyena, name) is not None
        assert name in dir(megatron_hyena)
    assert megatron_hyena.HyenaGLTModel is megatron_hyena.HyenaGLT
    assert megatron_hyena.StrippedHyenaOperator is StripedHyenaOperator
    with pytest.raises(AttributeError, match="NoSuchName"):
        megatron_hyena.NoSuchName  # noqa: B018


@pytest.mark.smoke
def test_the_package_starts_without_torch_and_its_names_without_the_engine() -> None:
    program = (
        "import sys, megatron_hyena as m\n"
        "assert 'torch' not in sys.modules\n"
        "m.GenomicTokenizer; assert 'torch' not in sys.modules\n"
        "for name in m.__all__: getattr(m, name)\n"
        "assert not {'deepspeed', 'megatron'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_page_names_what_there_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "seeds.md").read_text(encoding="utf-8")
    section = page.split("## Classes and functions\n")[1].split("\nWhat the sketches")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(megatron_hyena.__all__) - {"__version__"}


@pytest.mark.parametrize("number", [0, 1])
def test_examples_of_the_page_run(number: int) -> None:
    page = (Path(__file__).parents[3] / "docs" / "seeds.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[number], "docs/seeds.md", "exec"), {})
