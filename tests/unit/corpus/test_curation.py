"""Stretches, letters, digests and records of sequences, against loops over letters."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus import curation
from megatron_hyena.corpus.curation import (
    CurationRules,
    count_letters,
    replace_ambiguous,
    sequence_digest,
    stretches_of,
    survey,
)
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.records import Counts
from megatron_hyena.corpus.sketch import Sketcher, SketchRules
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError

DNA, RNA, PROTEIN = SequenceType.DNA, SequenceType.RNA, SequenceType.PROTEIN
_AMBIGUOUS = {DNA: "RYSWKMBDHV", PROTEIN: "BJZ"}
_UNKNOWN = {DNA: "N", PROTEIN: "X"}


def _bytes(text):
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _reader(bases):
    return lambda start, end: bases[start:end]


def _gaps(text, rules, kind):
    """Positions that part, by regular expressions over the whole text."""
    unknown, ambiguous = _UNKNOWN[kind], _AMBIGUOUS[kind]
    gone = set()
    if rules.iupac == "unknown":
        unknown += ambiguous
    if rules.iupac == "part":
        gone |= {i for i, letter in enumerate(text) if letter.upper() in ambiguous}
    if rules.unknown_run:
        pattern = f"[{unknown}{unknown.lower()}]{{{rules.unknown_run},}}"
        for match in re.finditer(pattern, text):
            gone |= set(range(*match.span()))
    return gone


def _brute_stretches(text, rules, kind):
    gone, found, start = _gaps(text, rules, kind), [], None
    for i in range(len(text) + 1):
        inside = i < len(text) and i not in gone
        if inside and start is None:
            start = i
        if not inside and start is not None:
            if i - start >= rules.minimum_length:
                found.append((start, i))
            start = None
    return tuple(found)


_RULES = st.builds(
    CurationRules,
    minimum_length=st.integers(1, 4),
    unknown_run=st.integers(0, 5),
    iupac=st.sampled_from(["keep", "unknown", "part"]),
)


@settings(max_examples=100, deadline=None)
@given(
    rules=_RULES,
    kind=st.sampled_from([DNA, PROTEIN]),
    runs=st.lists(st.tuples(st.sampled_from("ACNnRrXxBg"), st.integers(1, 6)), max_size=12),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_stretches_whatever_the_pieces(rules, kind, runs, cuts):
    text = "".join(letter * count for letter, count in runs)
    if kind is DNA:
        text = text.replace("X", "W").replace("x", "w")
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [_bytes(text[a:b]) for a, b in pairwise(places)]
    assert stretches_of(pieces, rules, kind) == _brute_stretches(text, rules, kind)


def test_runs_are_parted_and_the_record_is_not_dropped():
    text = "ACGT" + "N" * 10 + "ac" + "n" * 9 + "G"
    assert stretches_of([_bytes(text)], CurationRules()) == ((0, 4), (14, 26))
    assert stretches_of([_bytes(text)], CurationRules(minimum_length=5)) == ((14, 26),)
    assert stretches_of([_bytes(text)], CurationRules(unknown_run=0)) == ((0, 26),)
    assert stretches_of([_bytes("N" * 20)], CurationRules()) == ()
    assert stretches_of([], CurationRules()) == ()


def test_runs_of_two_kinds_that_meet_between_pieces_are_two():
    rules = CurationRules(unknown_run=3, iupac="part")
    assert stretches_of([_bytes("AN"), _bytes("RA")], rules) == ((0, 2), (3, 4))
    assert stretches_of([_bytes("AR"), _bytes("NNA")], rules) == ((0, 1), (2, 5))
    assert stretches_of([_bytes("AR"), _bytes("N"), _bytes("NNA")], rules) == ((0, 1), (5, 6))


def test_ambiguous_codes_become_unknown_in_shards():
    bases, rules = _bytes("ACRykNnU"), CurationRules(iupac="unknown")
    assert replace_ambiguous(bases, rules, DNA).tobytes() == b"ACNnnNnU"
    assert replace_ambiguous(_bytes("MBzXU*"), rules, PROTEIN).tobytes() == b"MXxXU*"
    assert replace_ambiguous(bases, CurationRules(), DNA) is bases
    clean = _bytes("ACGT")
    assert replace_ambiguous(clean, rules, DNA) is clean


def test_letters_are_counted_as_the_rules_see_them():
    bases = _bytes("GCgcSNnRrAaTU")
    assert count_letters(bases, CurationRules(), DNA) == Counts(13, 4, 2, 3, 5)
    assert count_letters(bases, CurationRules(iupac="unknown"), DNA) == Counts(13, 4, 5, 0, 5)
    protein = _bytes("MGCXxBNz")
    assert count_letters(protein, CurationRules(), PROTEIN) == Counts(8, 0, 2, 2, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minimum_length": 0}, "minimum_length is 0; give 1 or more"),
        ({"unknown_run": -1}, "unknown_run is -1"),
        ({"iupac": "drop"}, "iupac is 'drop'; give one of keep, unknown, part"),
        ({"near_duplicates": 1.5}, "near_duplicates is 1.5; give a similarity"),
        ({"exclude_taxa": ("a", " ")}, "exclude_taxa holds a name without letters"),
    ],
)
def test_rules_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        CurationRules(**values)


@settings(max_examples=40, deadline=None)
@given(text=st.text("ACGTNRacgtnr", min_size=1, max_size=40), piece=st.integers(1, 9))
def test_a_strand_and_its_complement_have_one_digest(text, piece):
    other = str(Seq(text).reverse_complement())
    digests = []
    for strand in (text, other):
        bases = _bytes(strand)
        digests.append(sequence_digest(_reader(bases), len(bases), DNA, piece))
    plain = [hashlib.sha256(strand.upper().encode()).hexdigest() for strand in (text, other)]
    assert digests == [min(plain)] * 2


def test_digests_of_rna_and_protein_are_of_one_strand():
    for kind, text, same in ((RNA, "ACGU", "acgt"), (PROTEIN, "MUT", "mut")):
        both = [_bytes(text), _bytes(same)]
        digests = {sequence_digest(_reader(x), len(x), kind) for x in both}
        folded = text.replace("U", "T") if kind is RNA else text
        assert digests == {hashlib.sha256(folded.encode()).hexdigest()}


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 50 bases, so that stretches and k-mers fall across them."""
    monkeypatch.setattr(curation, "CHUNK", 50)


def test_survey_of_a_store(tmp_path, small_pieces):
    rng = np.random.default_rng(0)
    left, right = ("".join(rng.choice(list("ACGTacgt"), n)) for n in (400, 300))
    (tmp_path / "a.fa").write_text(f">one\n{left}{'N' * 30}{right}\n>two\n{left[:5]}\n")
    store = write_store(tmp_path / "a.zarr", [tmp_path / "a.fa"])
    seen: list[int] = []
    rules, sketch = CurationRules(minimum_length=10), SketchRules(scaled=4)
    one, two = survey(store, "s", "t", rules, sketch, progress=seen.append)
    assert (one.name, one.taxon, one.type, one.length) == ("s/one", "t", DNA, 730)
    assert one.stretches == ((0, 400), (430, 730))
    text = left + right
    gc = sum(letter in "GCgc" for letter in text)
    assert one.counts == Counts(700, gc, 0, 0, sum(map(str.islower, text)))
    whole = Sketcher(DNA, sketch)
    for part in (left, right):
        whole.begin()
        whole.add(_bytes(part))
    assert len(one.sketch) > 100
    assert np.array_equal(one.sketch, whole.hashes())
    assert (two.stretches, two.counts, two.length, len(two.sketch)) == ((), Counts(), 5, 0)
    assert seen == [730, 5]
    for name in ("", "a/b"):
        with pytest.raises(UserError, match=f"a sample is named '{name}'; give it a name without"):
            survey(store, name)
    bare = survey(store, "s", "t", rules, sketch=None)
    assert [len(record.sketch) for record in bare] == [0, 0]
    assert [record.sha256 for record in bare] == [one.sha256, two.sha256]
