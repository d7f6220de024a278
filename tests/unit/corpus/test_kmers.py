"""K-mers as numbers against k-mers as strings."""

from __future__ import annotations

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus import kmers
from megatron_hyena.corpus.kmers import Distinct, Together, codes, distinct, sampled
from megatron_hyena.data.alphabet import SequenceType

_CASES = {
    SequenceType.DNA: ("ACGTacgt", "ACGT", 31),
    SequenceType.RNA: ("ACGUacguT", "ACGT", 31),
    SequenceType.PROTEIN: ("UOACDEFGHIKLMNPQRSTVWY", "ACDEFGHIKLMNOPQRSTUVWY", 12),
}


def _brute(text, kind):
    """Every k-mer spelt as digits of base 4 or 32, in the smaller strand."""
    _, letters, k = _CASES[kind]
    text, found = text.upper(), []
    if kind.is_nucleic:
        text = text.replace("U", "T")
    for i in range(len(text) - k + 1):
        kmer = text[i : i + k]
        if set(kmer) <= set(letters):
            if kind.is_nucleic:
                kmer = min(kmer, str(Seq(kmer).reverse_complement()))
            value = 0
            for letter in kmer:
                value = value * (4 if kind.is_nucleic else 32) + letters.index(letter)
            found.append(value if kind.is_nucleic else value + 2**63)
    return found


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(_CASES)),
    length=st.integers(0, 120),
    stranger=st.integers(0, 400),
    seed=st.integers(0, 10**6),
)
def test_every_kmer_of_known_letters(kind, length, stranger, seed):
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list(_CASES[kind][0]), length))
    if stranger < length:
        text = text[:stranger] + ("X" if kind is SequenceType.PROTEIN else "N") + text[stranger:]
    found = codes(np.frombuffer(text.encode(), dtype=np.uint8), kind)
    assert found.dtype == np.uint64
    assert found.tolist() == _brute(text, kind)


def test_a_sample_is_of_the_asked_size_and_the_same_everywhere():
    values = np.arange(10**6, dtype=np.uint64)
    assert sampled(values, 1) is values
    for scaled in (2, 50):
        some = sampled(values, scaled)
        expected, spread = 10**6 / scaled, (10**6 / scaled) ** 0.5
        assert abs(len(some) - expected) < 5 * spread
        assert np.array_equal(sampled(values[::3], scaled), some[some % 3 == 0])
    assert set(sampled(values, 50).tolist()) < set(sampled(values, 2).tolist())


@pytest.mark.parametrize("merged", [1, 100, 10**6])
def test_distinct_numbers(monkeypatch, merged):
    monkeypatch.setattr(kmers, "_MERGED", merged)
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 300, n).astype(np.uint64) for n in (0, 50, 7, 200, 90)]
    gathered = Distinct()
    for piece in pieces:
        gathered.add(piece)
    expected = sorted(set(np.concatenate(pieces).tolist()))
    assert gathered.values().tolist() == expected
    assert gathered.values().tolist() == expected


@given(values=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=30))
def test_each_once(values):
    assert distinct(np.array(values, dtype=np.uint64)).tolist() == sorted(set(values))


@pytest.mark.parametrize("kind", [SequenceType.DNA, SequenceType.PROTEIN])
@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_sequences_laid_end_to_end_have_their_own_kmers_and_no_others(kind, size):
    draw = np.random.default_rng(size)
    parts = [draw.choice(np.frombuffer(b"ACGTacN", np.uint8), n) for n in [*range(60), 300, 5]]
    taken: list[np.ndarray] = []
    together = Together(taken.append, size)
    for part in parts:
        together.add(part)
    together.finish()
    together.finish()
    found, expected = ([codes(one, kind) for one in some] for some in (taken, parts))
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.sort(np.concatenate(expected)))
    if size == 100:
        assert 1 < len(taken) < len(parts)
    letters = [word for one in taken for word in one.tobytes().split(b"\0") if word]
    assert sorted(letters) == sorted(part.tobytes() for part in parts if len(part))
