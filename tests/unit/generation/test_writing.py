"""Sequences from prompts: draws that do not depend on the company, ends where they should be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from Bio.Seq import Seq

from megatron_hyena import Decoder, HyenaGLT, generate
from megatron_hyena.data.alphabet import EOD, SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.generation.constraints import OpenFrame, ProteinFrame
from megatron_hyena.generation.sampling import Sampling
from megatron_hyena.generation.writing import LETTERS, Order, Written, write_sequences
from tests.oracles.drawing import small_config, small_model
from tests.oracles.merged_models import dna, lively_model, merged_config

PROMPTS = ["A", "ACGTTGCAAC", "GG", "ACGTTGCAAT", "TTACGGATCCAGG"]


@pytest.fixture(scope="module")
def model() -> HyenaGLT:
    return lively_model(merged_config("SL(MA)W"), dna(2, 96))


def orders(length: int = 25, **changes: Any) -> list[Order]:
    return [Order(f"s{n}", prompt, length, **changes) for n, prompt in enumerate(PROMPTS)]


def written(model: HyenaGLT, wanted: list[Order], **changes: Any) -> list[Written]:
    sampling = changes.pop("sampling", Sampling(temperature=1.5, seed=4))
    return list(write_sequences(model, wanted, sampling, **changes))


def by_whole_passes(model: HyenaGLT, prompt: str, numbers: list[float], letters: str) -> str:
    """Each letter drawn from a pass over all before it."""
    text, ids = "", [ord(letter) for letter in letters]
    for number in numbers:
        with torch.no_grad():
            logits = model(torch.tensor([list((prompt + text).encode())])).logits[0, -1, ids]
        p = torch.softmax(logits / 1.5, 0).cumsum(0)
        text += letters[int((p <= number).sum())]
    return text


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_draw_depends_on_its_sequence_alone(model: HyenaGLT, batch: int) -> None:
    for one in written(model, orders(), batch=batch):
        numbers = Sampling(seed=4).numbers(one.name, 25).tolist()
        assert one.text == by_whole_passes(model, one.prompt, numbers, "ACGT")
        assert one.end == "length"


def test_nats_are_those_of_the_whole_pass(model: HyenaGLT) -> None:
    for one in written(model, orders()):
        ids = torch.tensor([list((one.prompt + one.text).encode())])
        with torch.no_grad():
            logits = model(ids).logits[0, :, [ord(letter) for letter in "ACGT"]]
        nats = torch.log_softmax(logits, 1)
        start = len(one.prompt) - 1
        each = [nats[start + i, "ACGT".index(letter)] for i, letter in enumerate(one.text)]
        assert one.nats == pytest.approx(-float(sum(each)) / len(each), rel=1e-9)


def test_greedy_is_the_same_for_every_seed(model: HyenaGLT) -> None:
    texts = {generate(model, PROMPTS[1], 30, temperature=0.0, seed=seed)[0] for seed in range(3)}
    assert len(texts) == 1
    assert len({generate(model, PROMPTS[1], 30, seed=seed)[0] for seed in range(3)}) == 3


def test_a_prefix_is_read_as_if_it_had_been_written(model: HyenaGLT) -> None:
    whole = written(model, orders())
    begun = [Order(one.name, one.prompt + one.text[:7], 18, prefix=one.text[7:10]) for one in whole]

    class Same(Sampling):
        def numbers(self, name: str, length: int) -> torch.Tensor:
            return super().numbers(name, 25)[10:]

    for one, other in zip(whole, written(model, begun, sampling=Same(1.5, seed=4)), strict=True):
        assert other.text == one.text[7:]


def test_constraints_hold_and_end_sequences(model: HyenaGLT) -> None:
    wanted = [
        Order("free", "ACG", 12),
        Order("open", "ACG", 60, "ATG", OpenFrame(11)),
        Order("gene", "ACGAA", 600, "", OpenFrame(11, until_stop=True)),
        Order("protein", "A", 99, "ATGC", ProteinFrame(11, "MLSRW*")),
        Order("whole", "A", 3, "ATG"),
    ]
    even = Sampling(temperature=30.0, seed=4)
    free, open_frame, gene, protein, whole = written(model, wanted, batch=5, sampling=even)
    assert len(free.text) == 12
    assert open_frame.text.startswith("ATG") and open_frame.end == "length"
    assert len(open_frame.text) == 60 and "*" not in Seq(open_frame.text).translate(11)
    assert gene.end == "constraint" and str(Seq(gene.text).translate(11)).count("*") == 1
    assert (protein.end, str(Seq(protein.text).translate(11))) == ("constraint", "MLSRW*")
    assert (whole.text, whole.end) == ("ATG", "length")
    assert math.isnan(whole.nats)
    assert free.text == written(model, wanted[:1], sampling=even)[0].text


def test_the_end_of_a_document_ends_a_sequence(model: HyenaGLT) -> None:
    likely = small_model(small_config("SA")).eval()
    with torch.no_grad():
        likely.head.weight[EOD] *= 0.1
    found = written(likely, orders(200), until_eod=True)
    assert {one.end for one in found} == {"eod"}
    assert all(len(one.text) < 200 and set(one.text) <= set("ACGT") for one in found)
    assert len({len(one.text) for one in found}) > 1
    assert {one.end for one in written(likely, orders(200))} == {"length"}


def test_letters_of_other_types() -> None:
    model = small_model(small_config("S", type_embedding="dna")).eval()
    with torch.no_grad():
        assert model.types is not None
        model.types.weight.copy_(torch.randn(model.types.weight.shape, dtype=torch.float64))
    order = Order("one", "MKV", 300)
    found = written(
        model, [order], letters=LETTERS[SequenceType.PROTEIN], kind=SequenceType.PROTEIN
    )
    assert len(set(found[0].text)) > 10 and set(found[0].text) <= set(LETTERS[SequenceType.PROTEIN])
    assert generate(model, "ACG", 50, letters="acgtN") != generate(model, "ACG", 50)


def test_the_compact_alphabet() -> None:
    model = small_model(small_config("SL", vocab_size=4)).eval()
    text = generate(model, "ATGC", 20, temperature=0.0)[0]
    decoder = Decoder.read(model, [torch.tensor([0, 1, 2, 3])], room=20)
    for letter in text:
        assert "ATGC"[int(decoder.logits.argmax())] == letter
        decoder.step(torch.tensor(["ATGC".index(letter)]))


def test_progress_is_told(model: HyenaGLT) -> None:
    told: list[int] = []
    written(model, orders(9), batch=2, watch=told.append)
    assert sum(told) == 9 * len(PROMPTS)


@pytest.mark.parametrize(
    ("wanted", "changes", "message"),
    [
        ([Order("a", "AC", 5), Order("a", "AC", 5)], {}, "two sequences are to be called 'a'"),
        ([Order("a", "AC", 5)], {"batch": 0}, "a batch of 0 sequences; give 1 or more"),
        ([Order("a", "AC", 5)], {"letters": "ACA"}, "the letters 'ACA' must be one or more, each"),
        ([Order("a", "A\x01", 5)], {}, "a: byte 1 at position 2 is a special id"),
        ([Order("a", "A", 9, "", OpenFrame(1))], {"letters": "N"}, "a: none of the letters N may"),
    ],
)
def test_orders_that_make_no_sense_are_refused(
    model: HyenaGLT, wanted: list[Order], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        written(model, wanted, **changes)


def test_orders_are_checked_when_they_are_made() -> None:
    with pytest.raises(UserError, match="a: a length of 0 letters is less than 1, the prefix or"):
        Order("a", "A", 0)
    with pytest.raises(UserError, match="a: a length of 2 letters is less than 3"):
        Order("a", "A", 2, "ATG")
    with pytest.raises(UserError, match="a: the prompt is empty; give one letter or more"):
        Order("a", "", 5)
    compact = small_model(small_config("S", vocab_size=4))
    with pytest.raises(UserError, match="has no id for the end of a document; write to a length"):
        written(compact, [Order("a", "A", 5)], until_eod=True)
