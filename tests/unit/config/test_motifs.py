"""Motifs as text, the bank they make, and every way to name them or a filter wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_hyena.config import HyenaGLTConfig, load_config, save_config
from megatron_hyena.config.motifs import IUPAC, MOTIFS, motif_bank, reverse_complement
from megatron_hyena.errors import UserError

PAIRS = {"A": "T", "C": "G", "G": "C", "T": "A"}


@pytest.mark.parametrize("letter", IUPAC)
def test_each_letter_has_the_complement_of_its_bases(letter: str) -> None:
    opposite = {PAIRS[base] for base in IUPAC[letter]}
    assert set(IUPAC[reverse_complement(letter)]) == opposite


def test_letters_stand_for_every_set_of_bases_once() -> None:
    sets = [frozenset(bases) for letter, bases in IUPAC.items() if letter != "U"]
    assert len(set(sets)) == len(sets) == 15


def test_the_bank_reads_both_strands() -> None:
    assert motif_bank(["tata_box"]) == ("TATAWAW", "WTWTATA")
    assert motif_bank(["AACG", "cg_dinucleotide"]) == ("AACG", "CGTT", "CG")
    assert motif_bank(["CGTT", "AACG"]) == ("CGTT", "AACG"), "each pattern once"
    assert motif_bank(["augr"]) == ("ATGR", "YCAT"), "lower case, and U as T"


def test_the_named_palindrome_is_one() -> None:
    assert motif_bank(["palindrome"]) == (MOTIFS["palindrome"],)
    assert len(motif_bank(list(MOTIFS))) == 4


def test_motifs_come_from_files_and_the_command_line(tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    given.write_text("model: {pattern: G, motifs: [TATAWAW, N, Y]}\n")
    with pytest.raises(UserError, match="'N' fits every sequence"):
        load_config(given)
    for text in ("[TATAWAW, palindrome]", "TATAWAW,palindrome", " [ TATAWAW , palindrome ] "):
        config = load_config(given, [f"model.motifs={text}"])
        assert config.model.motifs == ("TATAWAW", "palindrome")
    assert load_config(None, ["model.motifs=[Y]"]).model.motifs == ("Y",)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert HyenaGLTConfig(motifs=["CG"]) == HyenaGLTConfig(motifs=("CG",))  # type: ignore[arg-type]


REFUSED = [
    ({"motifs": ()}, r"model.motifs=\(\) must be a list of motifs, such as \[TATAWAW, CG\]"),
    ({"motifs": "CG"}, "model.motifs='CG' must be a list of motifs"),
    ({"motifs": ("CG", "TATAX")}, "model.motifs: 'TATAX' has 'X', which is no IUPAC letter"),
    ({"motifs": ("tata_bix",)}, "'tata_bix' has '_', .* or one of the names cg_dinucleotide, tata"),
    ({"motifs": ("",)}, "model.motifs: '' fits every sequence"),
    ({"motifs": ("NNN",)}, "model.motifs: 'NNN' fits every sequence; give it a letter other than"),
    ({"motif_length": 6}, "TATAWAW of 7 letters, but model.motif_length = 6 taps; raise"),
    (
        {"hyena_filter": "genomic", "hyena_filter_size": 4},
        "TATAWAW of 7 letters, but model.hyena_filter_size = 4 taps",
    ),
    ({"hidden_size": 12}, "4 patterns, .* 16 in all, but model.hidden_size = 12; name fewer"),
    ({"motif_length": 0}, "model.motif_length=0 must be 1 or more"),
    ({"structure_scales": 0}, "model.structure_scales=0 must be 1 or more"),
    ({"hyena_filter_size": -1}, "model.hyena_filter_size=-1 must lie between 0"),
    ({"hyena_filter": "genomc"}, "model.hyena_filter='genomc' is unknown; did you mean genomic?"),
    ({"hyena_filter": ""}, "model.hyena_filter='' is unknown; did you mean"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_mistakes_are_refused_in_one_sentence(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        HyenaGLTConfig(**{"pattern": "GH", "hidden_size": 32, **changes})
    assert "\n" not in str(caught.value)


def test_only_what_starts_from_motifs_must_hold_them() -> None:
    HyenaGLTConfig(pattern="SH", hidden_size=12, motif_length=2, hyena_filter_size=2)
    HyenaGLTConfig(pattern="S", hidden_size=12, hyena_filter="genomic", hyena_filter_size=2)
    with pytest.raises(UserError, match=r"model.hidden_size = 12"):
        HyenaGLTConfig(pattern="H", hidden_size=12, hyena_filter="genomic")


def test_an_explicit_bank_has_no_longest_sequence() -> None:
    from megatron_hyena.config import check_layout

    long = ["model.max_sequence_length=100", "data.sequence_length=101", "model.pattern=SG"]
    with pytest.raises(UserError, match=r"= 101 exceeds .* = 100, which the filters of G are made"):
        check_layout(load_config(None, long), 1)
    with pytest.raises(UserError, match="the filters of H and G are made for"):
        check_layout(load_config(None, [*long[:2], "model.pattern=GH"]), 1)
    check_layout(load_config(None, [*long, "model.hyena_filter=genomic"]), 1)
    check_layout(load_config(None, [*long, "model.hyena_filter_size=50"]), 1)
