"""Sketches against k-mers in Python sets, hashed by the library one by one."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st
from sourmash.minhash import hash_murmur

from megatron_hyena.corpus import sketch
from megatron_hyena.corpus.sketch import (
    Sketcher,
    SketchRules,
    containment,
    jaccard,
    k_of,
    least_shared,
    shared,
    similarity,
)
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError

DNA, RNA, PROTEIN = SequenceType.DNA, SequenceType.RNA, SequenceType.PROTEIN


def _brute(stretches, kind, scaled):
    """Hashes below 2^64 / scaled of all the k-mers, those of nucleotides in the smaller strand."""
    k, found = (7, set()) if kind is PROTEIN else (21, set())
    letters = "ACDEFGHIKLMNOPQRSTUVWY" if kind is PROTEIN else "ACGT"
    for text in stretches:
        text = text.upper() if kind is PROTEIN else text.upper().replace("U", "T")
        for i in range(len(text) - k + 1):
            kmer = text[i : i + k]
            if set(kmer) <= set(letters):
                other = kmer if kind is PROTEIN else str(Seq(kmer).reverse_complement())
                found.add(hash_murmur(min(kmer, other), 42))
    return sorted(value for value in found if value <= 2**64 / scaled)


def _sketch(stretches, kind, scaled, piece=10**9):
    made = Sketcher(kind, SketchRules(scaled, scaled))
    for text in stretches:
        made.begin()
        for start in range(0, len(text), piece):
            made.add(np.frombuffer(text[start : start + piece].encode(), dtype=np.uint8))
    return made.hashes()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([DNA, RNA, PROTEIN]),
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(0, 120), min_size=1, max_size=3),
    piece=st.integers(1, 60),
    scaled=st.sampled_from([1, 3]),
)
def test_sketch_whatever_the_pieces(kind, seed, lengths, piece, scaled):
    rng = np.random.default_rng(seed)
    letters = list("ACDEFGHIKLMNOPQRSTUVWYX*bm" if kind is PROTEIN else "ACGTUacgtu" * 6 + "NR")
    stretches = ["".join(rng.choice(letters, n)) for n in lengths]
    made = _sketch(stretches, kind, scaled, piece)
    assert made.dtype == np.uint64
    assert made.tolist() == _brute(stretches, kind, scaled)


def test_both_strands_have_one_sketch_of_dna(monkeypatch):
    rng = np.random.default_rng(1)
    text = "".join(rng.choice(list("ACGT"), 5000))
    forward = _sketch([text], DNA, 100)
    assert 25 < len(forward) < 85  # 50 expected, 7 is the standard deviation
    assert np.array_equal(forward, _sketch([str(Seq(text).reverse_complement())], DNA, 100))
    monkeypatch.setattr(sketch, "_EMPTIED", 64)  # what bounds memory changes nothing
    assert np.array_equal(forward, _sketch([text], DNA, 100, piece=50))


_HASHES = st.sets(st.integers(0, 40), max_size=20)


@given(a=_HASHES, b=_HASHES)
def test_set_operations(a, b):
    arrays = [np.array(sorted(s), dtype=np.uint64) for s in (a, b)]
    assert shared(*arrays) == len(a & b)
    assert containment(*arrays) == (len(a & b) / len(a) if a else 0)
    assert jaccard(*arrays) == (len(a & b) / len(a | b) if a | b else 0)


@given(size=st.integers(0, 500), wanted=st.floats(0, 1), kind=st.sampled_from([DNA, PROTEIN]))
def test_least_shared_is_the_least(size, wanted, kind):
    k, least = k_of(kind), least_shared(size, wanted, k_of(kind))
    enough = [n for n in range(1, size + 1) if similarity(n / size, k) >= wanted - 1e-9]
    assert least == (enough[0] if enough else 1)


def test_mutated_sequences_have_the_similarity_of_their_mutations():
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 4, 100_000)
    letters = np.frombuffer(b"ACGT", dtype=np.uint8)
    for rate in (0.01, 0.05, 0.1):
        changed = (codes + (rng.random(len(codes)) < rate) * rng.integers(1, 4, len(codes))) % 4
        texts = [letters[c].tobytes().decode() for c in (codes, changed)]
        a, b = (_sketch([text], DNA, 20) for text in texts)
        assert abs(similarity(containment(a, b), 21) - (1 - rate)) < 0.01


def test_without_the_library_and_out_of_range(monkeypatch):
    with pytest.raises(UserError, match=r"protein_scaled is 0; give 1"):
        SketchRules(protein_scaled=0)
    real = builtins.__import__

    def absent(name, *rest, **named):
        if name == "sourmash":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"sketches need sourmash.*pip install"):
        Sketcher(DNA)
