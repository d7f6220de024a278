"""Sequences that others extend: steps where they go on, passes where they do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_hyena.errors import UserError
from megatron_hyena.generation.decoder import Decoder
from megatron_hyena.generation.follower import Follower
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import small_config, small_model
from tests.oracles.merged_models import dna, lively_model, merged_config


def model_of(pattern: str) -> HyenaGLT:
    return lively_model(merged_config(pattern), dna(2, 96))


def assert_read(follower: Follower, ids: Tensor) -> Decoder:
    """Logits are those of the whole pass; the decoder that gave them."""
    with torch.no_grad():
        wanted = follower.model(ids).logits[:, -1]
    found = follower.logits(ids)
    assert (found - wanted).abs().max() < 1e-10
    assert not found.is_inference()  # callers write to them
    assert follower.decoder is not None
    return follower.decoder


@pytest.mark.parametrize("pattern", ["SMLHAW", "S(MA)L"])
def test_rows_go_on_in_any_order(pattern: str) -> None:
    follower, ids = Follower(model_of(pattern)), dna(3, 20)
    first = assert_read(follower, ids)
    for rows in ([0, 1, 2], [2, 0, 0], [1, 1, 2, 0], [3, 2]):
        ids = torch.cat([ids[rows], dna(len(rows), 1, seed=len(rows))], dim=1)
        assert assert_read(follower, ids) is first


def test_other_sequences_are_read_anew() -> None:
    follower, ids = Follower(model_of("SLA")), dna(2, 20)
    decoder = assert_read(follower, ids)
    changed = ids.clone()
    changed[1, 3] = ord("T") if ids[1, 3] != ord("T") else ord("G")
    for other in (
        dna(2, 2, seed=1).repeat(1, 11)[:, :21],
        torch.cat([changed, ids[:, :1]], 1),
        ids,
    ):
        again = assert_read(follower, other)
        assert again is not decoder
        decoder = again


def test_room_of_long_filters_grows_up_to_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_hyena.generation.follower.ROOM", 3)
    follower = Follower(small_model(small_config("H", max_sequence_length=20)).eval())
    decoders = {assert_read(follower, dna(1, 20)[:, :length]) for length in range(1, 21)}
    assert len(decoders) == 3  # made at 1, 5 and 11 bases, with room for 3, 5 and 9 more
    with pytest.raises(UserError, match="21 bytes exceeds"):
        follower.logits(dna(1, 21))


@pytest.mark.parametrize("pattern", ["SMLHAW", "S(MA)L"])
def test_padding_in_front_is_not_read(pattern: str) -> None:
    model, prompts = model_of(pattern), [dna(1, length, seed=length)[0] for length in (20, 3, 11)]
    follower, pad = Follower(model), torch.ones(20, dtype=torch.int64)
    ids = torch.stack([torch.cat([pad[len(one) :], one]) for one in prompts])
    mask = torch.stack([(torch.arange(20) >= 20 - len(one)).int() for one in prompts])
    for _ in range(4):
        found = follower.logits(ids, mask)
        with torch.no_grad():
            alone = [
                model(row[kept != 0][None]).logits[0, -1]
                for row, kept in zip(ids, mask, strict=True)
            ]
        assert (found - torch.stack(alone)).abs().max() < 1e-10
        ids = torch.cat([ids, found.argmax(1, keepdim=True)], dim=1)
        mask = torch.cat([mask, mask[:, -1:]], dim=1)


def test_padding_elsewhere_is_refused() -> None:
    follower, mask = Follower(model_of("S")), torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    with pytest.raises(UserError, match="padding_side = 'left'"):
        follower.logits(dna(2, 8), mask)
