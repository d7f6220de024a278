"""Models of `GenomicTokenizer(compact=True)`: ids 0 to 3 are letters, and none of them is special.

The oracle is a model of bytes with the same vectors for the same letters.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_hyena.config.alphabet import MASK, PAD, filler_id, mask_id, pad_id
from megatron_hyena.data import alphabet
from megatron_hyena.data.tokenizer import BASES, GenomicTokenizer
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.drawing import small_config, small_model
from tests.oracles.merged_models import stage_of

LETTERS = torch.tensor(list(BASES.encode()))


def pair(pattern: str, **changes: Any) -> tuple[HyenaGLT, HyenaGLT]:
    """A model of four ids, and one of bytes that reads the letters they stand for alike."""
    values = {"window": 8, "tie_embeddings": False, **changes}
    compact = small_model(small_config(pattern, vocab_size=4, **values))
    of_bytes = small_model(small_config(pattern, **values), seed=1)
    theirs = dict(of_bytes.named_parameters())
    with torch.no_grad():
        for name, parameter in compact.named_parameters():
            other = theirs[name]
            if other.shape == parameter.shape:
                other.copy_(parameter)
            elif len(other) == 256:
                other[LETTERS] = parameter
            else:
                raise AssertionError(name)
    return compact, of_bytes


def draw(rows: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, 4, (rows, length), generator=generator)


def test_special_ids_are_those_of_the_tokenizer_and_of_the_data() -> None:
    for compact in (False, True):
        tokenizer = GenomicTokenizer(compact)
        config = small_config(vocab_size=tokenizer.vocab_size)
        assert (pad_id(config), mask_id(config)) == (
            tokenizer.pad_token_id,
            tokenizer.mask_token_id,
        )
        assert filler_id(config) == (tokenizer.pad_token_id or 0)
    assert (PAD, MASK) == (alphabet.PAD, alphabet.MASK)


@pytest.mark.parametrize("length", [32, 27])  # 27 is padded to 32
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"router_input": "trunk"},
        {"adaptive": True, "complexity": "window", "gamma": 5.0},
        {"merger": "hnet"},
        {"merger": "static"},
    ],
)
def test_rates_count_every_letter_and_no_padding(length: int, changes: dict[str, Any]) -> None:
    ids = draw(3, length)
    compact, of_bytes = pair("S(S(L)0.25)A", **changes)
    compact.train(), of_bytes.train()
    found = compact.weighted_losses(ids, ids, torch.ones(ids.shape))[1]
    right = of_bytes.weighted_losses(LETTERS[ids], LETTERS[ids], torch.ones(ids.shape))[1]
    torch.testing.assert_close(found, right, rtol=1e-12, atol=0)
    for number in range(2):
        counts = stage_of(compact, number).rate.take()
        assert torch.equal(counts, stage_of(of_bytes, number).rate.take())
        assert counts[0] > 0
    compact(ids)
    assert stage_of(compact).rate.take()[0] == 3 * length
    states = (m.eval()(x).last_hidden_state for m, x in ((compact, ids), (of_bytes, LETTERS[ids])))
    torch.testing.assert_close(*states, rtol=1e-11, atol=1e-11)


def test_what_needs_special_ids_or_bytes_is_refused() -> None:
    for changes, words in (
        ({"causal": False}, ("model.causal=false", "model.vocab_size=4")),
        ({"adaptive": True, "complexity": "kmer"}, ("model.complexity=kmer", "vocab_size=4")),
    ):
        small_config("S(S)", **changes)
        with pytest.raises(UserError) as caught:
            small_config("S(S)", vocab_size=4, **changes)
        assert all(word in str(caught.value) for word in words)
        assert "\n" not in str(caught.value)
    assert small_config("S(S)", vocab_size=4, complexity="kmer").vocab_size == 4  # not read
