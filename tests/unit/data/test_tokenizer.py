"""Text to ids and back: nothing lost, nothing made up."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from megatron_hyena import GenomicTokenizer, HyenaGLT, HyenaGLTConfig
from megatron_hyena.data.alphabet import EOD, IUPAC, MASK, PAD
from megatron_hyena.errors import UserError

TEXTS = [
    "",
    "A",
    "AT",
    "ATCGATCGATCG",
    "acgtnACGTN",
    "ATNNCG",
    IUPAC,
    "AUGGCUuaa",
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ*",
    "-.*~ \t",
    "été",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back_as_they_were(text: str) -> None:
    tokenizer = GenomicTokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode("utf-8"))
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array(ids, dtype=np.uint8)) == text
    assert tokenizer.decode(torch.tensor(ids, dtype=torch.int64)) == text
    assert tokenizer.encode(text.encode("utf-8")) == ids


def test_any_sequence_of_letters_of_any_length() -> None:
    """The peers' k-mers lose the letters at the end, and lower case."""
    drawn = random.Random(0)
    tokenizer = GenomicTokenizer()
    for length in range(200):
        text = "".join(drawn.choices(IUPAC, k=length))
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) == length


def test_special_ids_are_those_of_the_data() -> None:
    tokenizer = GenomicTokenizer()
    assert (tokenizer.eod_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (
        *(EOD, PAD, MASK),
    )
    assert (EOD, PAD, MASK) == (0, 1, 2)
    assert len(tokenizer) == tokenizer.vocab_size == HyenaGLTConfig().vocab_size
    ids = [65, MASK, 71, EOD, PAD]
    assert tokenizer.decode(ids) == "AG"
    assert tokenizer.decode(ids, skip_special=False) == "A<mask>G<eod><pad>"


def test_four_letters() -> None:
    tokenizer = GenomicTokenizer(compact=True)
    assert tokenizer.vocab_size == 4
    assert tokenizer.encode("ATGCCA") == [0, 1, 2, 3, 3, 0]
    assert tokenizer.decode([3, 2, 1, 0]) == "CGTA"
    special = (tokenizer.eod_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id)
    assert special == (None, None, None)
    model = HyenaGLT(HyenaGLTConfig(pattern="S", hidden_size=16, vocab_size=4))
    ids = torch.tensor([tokenizer.encode("ATGCCA")])
    assert model(ids).logits.shape == (1, 6, 4)


def test_ids_outside_the_models_vocabulary_are_refused() -> None:
    model = HyenaGLT(HyenaGLTConfig(pattern="S", hidden_size=16, vocab_size=4))
    for ids, word in (([65, 84], "84"), ([0, -1], "-1"), ([3, 4], "4")):
        with pytest.raises(UserError, match=f"token id {word} is outside model.vocab_size=4"):
            model(torch.tensor([ids]))
    with pytest.raises(UserError, match=r"input_ids has shape \[1, 0\]"):
        model(torch.zeros(1, 0, dtype=torch.int64))


def test_padding_has_a_mask() -> None:
    tokenizer = GenomicTokenizer()
    rows, mask = tokenizer.pad([[65, 67], [71], []])
    assert rows == [[65, 67], [71, PAD], [PAD, PAD]]
    assert mask == [[1, 1], [1, 0], [0, 0]]
    assert tokenizer.pad([]) == ([], [])
    assert GenomicTokenizer(compact=True).pad([[3, 3], [2]]) == ([[3, 3], [2, 0]], [[1, 1], [1, 0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GenomicTokenizer().encode("AC\x01G"), ("byte 1", "position 3")),
        (lambda: GenomicTokenizer(compact=True).encode("ACn"), ("'n'", "position 3")),
        (lambda: GenomicTokenizer(compact=True).encode("ACU"), ("'U'", "GenomicTokenizer()")),
        (lambda: GenomicTokenizer().decode([65, 256]), ("256", "255")),
        (lambda: GenomicTokenizer(compact=True).decode([4]), ("4", "0 to 3")),
        (lambda: GenomicTokenizer().decode([65, -1]), ("-1",)),
        (lambda: GenomicTokenizer().decode([65, 200]), ("200", "position 2")),
    ],
)
def test_what_is_no_sequence_is_refused(call, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
