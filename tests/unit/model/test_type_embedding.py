"""Vectors for the type of sequence: added where the track says, by default where there is none."""

from __future__ import annotations

import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.config import check_layout, load_config
from megatron_hyena.errors import UserError

IDS = torch.randint(2, 250, (2, 24), generator=torch.Generator().manual_seed(0))
TYPES = torch.tensor([[0] * 12 + [2] * 12, [1] * 24])


def model_of(kind: str) -> HyenaGLT:
    model = HyenaGLT(HyenaGLTConfig(pattern="S", hidden_size=32, type_embedding=kind))
    if model.types is not None:
        torch.nn.init.normal_(model.types.weight, generator=torch.Generator().manual_seed(1))
    return model


def test_each_position_gets_the_vector_of_its_type() -> None:
    model, plain = model_of("dna"), model_of("none")
    assert model.types is not None
    seen: list[torch.Tensor] = []
    for one in (model, plain):
        one.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        one(IDS, tracks={"type": TYPES})
    difference = (seen[0] - seen[1]).transpose(0, 1)
    wanted = torch.stack([torch.stack([model.types.weight[t] for t in row]) for row in TYPES])
    assert torch.allclose(difference, wanted, atol=1e-6)


def test_without_the_track_the_default_is_added_not_nothing() -> None:
    for at, kind in enumerate(("dna", "rna", "protein", "mixed")):
        model = model_of(kind)
        told = model(IDS, tracks={"type": torch.full_like(IDS, at)}).logits
        assert torch.equal(model(IDS).logits, told)
        other = model(IDS, tracks={"type": torch.full_like(IDS, (at + 1) % 4)}).logits
        assert not torch.equal(other, told)


def test_the_vectors_are_learnt() -> None:
    model = model_of("dna")
    output = model(IDS, labels=IDS, tracks={"type": TYPES})
    output.loss.backward()
    assert model.types is not None
    norms = model.types.weight.grad.norm(dim=1)
    assert (norms[:3] > 0).all()
    assert norms[3] == 0


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"model\.type_embedding='cdna': use none, dna, rna, protein or mixed"
    ):
        HyenaGLTConfig(type_embedding="cdna")


def test_training_asks_for_the_track() -> None:
    config = load_config(None, ["model.type_embedding=dna"])
    with pytest.raises(UserError, match=r"needs the track `type`.*add type to it"):
        check_layout(config, 1)
    check_layout(load_config(None, ["model.type_embedding=dna", "data.tracks=[type]"]), 1)
