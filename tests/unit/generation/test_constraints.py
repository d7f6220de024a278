"""Codons: the codes are NCBI's, frames hold no stops, proteins come out as they went in."""

from __future__ import annotations

import random

import pytest
from Bio.Data import CodonTable
from Bio.Seq import Seq

from megatron_hyena.errors import UserError
from megatron_hyena.generation.constraints import (
    Constraint,
    OpenFrame,
    ProteinFrame,
    check_beginning,
)
from megatron_hyena.generation.genetic_code import CODES, codons_of


def random_text(constraint: Constraint, length: int, seed: int, letters: str = "ACGT") -> str:
    """Letters drawn evenly from those allowed, until the end or `length`."""
    chance, text = random.Random(seed), ""
    while len(text) < length and not constraint.ended:
        pairs = zip(letters, constraint.allowed(letters), strict=True)
        text += chance.choice([letter for letter, may in pairs if may])
        constraint.wrote(text[-1])
    return text


def test_codes_are_those_of_biopython() -> None:
    tables = CodonTable.unambiguous_dna_by_id
    assert set(CODES) == set(tables)
    for number, table in tables.items():
        found = codons_of(number)
        assert len(found) == 64
        for codon, amino in found.items():
            assert amino == table.forward_table.get(codon, "*")
            assert amino != "*" or codon in table.stop_codons


@pytest.mark.parametrize("table", [1, 2, 4, 6, 11])
def test_an_open_frame_has_no_stop(table: int) -> None:
    text = random_text(OpenFrame(table), 3000, seed=table)
    assert "*" not in Seq(text).translate(table)
    assert "*" in Seq(text[1:2998]).translate(table)  # in other frames there may be


def test_a_frame_ends_behind_its_first_stop() -> None:
    for seed in range(20):
        text = random_text(OpenFrame(1, until_stop=True), 3000, seed)
        assert len(text) % 3 == 0
        assert str(Seq(text).translate(1)).index("*") == len(text) // 3 - 1


@pytest.mark.parametrize("table", [1, 12, 33])
@pytest.mark.parametrize("letters", ["ACGT", "ACGU", "acgt"])
def test_a_protein_comes_out_as_it_went_in(table: int, letters: str) -> None:
    protein = "MACDEFGHIKLNPQRSTVWYLLRRSS*"
    texts = set()
    for seed in range(5):
        constraint = ProteinFrame(table, protein)
        text = random_text(constraint, 999, seed, letters)
        assert constraint.ended and len(text) == constraint.length == 81
        assert set(text) <= set(letters)
        assert str(Seq(text).translate(table)) == protein
        texts.add(text)
    assert len(texts) == 5


def test_a_beginning_is_part_of_the_frame() -> None:
    constraint = OpenFrame(11)
    check_beginning(constraint, "ATGTA", "one")
    assert constraint.allowed("ACGTN") == [False, True, False, True, False]
    protein = ProteinFrame(11, "MW")
    check_beginning(protein, "ATGT", "one")
    assert protein.allowed("ACGT") == [False, False, True, False]


@pytest.mark.parametrize(
    ("constraint", "prefix", "message"),
    [
        (OpenFrame(11), "ATGTAA", "'ATGTAA' of one breaks.*'A' at position 6; the frame begins"),
        (ProteinFrame(1, "M"), "ATGC", "'C' at position 4"),
        (ProteinFrame(1, "M"), "C", "'C' at position 1"),
    ],
)
def test_a_beginning_that_breaks_it_is_refused(
    constraint: Constraint, prefix: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_beginning(constraint, prefix, "one")


def test_what_no_codon_says_is_refused() -> None:
    with pytest.raises(UserError, match="there is no genetic code 7; give one of NCBI's: 1, 2, 3"):
        OpenFrame(7)
    with pytest.raises(UserError, match="no codon of genetic code 1 stands for 'X' at position 2"):
        ProteinFrame(1, "MX")
    with pytest.raises(UserError, match="no codon of genetic code 27 stands for '\\*'"):
        ProteinFrame(27, "M*")
    with pytest.raises(UserError, match="has no amino acids"):
        ProteinFrame(1, "")
