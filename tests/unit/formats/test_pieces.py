"""Letters are counted, and strays found, as a loop over them does; names are given once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from megatron_hyena.formats.pieces import Records, Tally, tally

IUPAC = "ACGTURYSWKMBDHVN"
AMINO = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@settings(max_examples=150)
@given(
    st.sampled_from(
        ["ACGTN", "ACGTNacgtn", IUPAC + IUPAC.lower(), AMINO + "*x", "ACGT-", "ACGT@`"]
    ),
    st.integers(0, 2000),
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(SequenceType)),
)
def test_counts(letters, size, seed, kind):
    draw = np.random.default_rng(seed)
    bases = draw.choice(np.frombuffer(letters.encode(), np.uint8), size)
    text = bases.tobytes().decode()
    legal = IUPAC if kind.is_nucleic else AMINO + "*"
    unknown = "N" if kind.is_nucleic else "X"
    if any(letter.upper() not in legal for letter in text):
        assert tally(bases, kind) is None
        records = Records(Path("f"), kind)
        records.begin("a")
        stray = next(i for i, letter in enumerate(text) if letter.upper() not in legal)
        with pytest.raises(UserError, match=f"f: record 'a' holds .* at position {stray + 1},"):
            records.piece(bases)
        return
    assert tally(bases, kind) == Tally(
        gc=sum(letter in "GCgc" for letter in text),
        unknown=sum(letter.upper() == unknown for letter in text),
        lower=sum(letter.islower() for letter in text),
    )


def test_no_stray_passes_for_a_letter():
    """However few bits part it from one of ACGTN."""
    for stray in (byte for byte in range(256) if chr(byte).upper() not in IUPAC):
        bases = np.tile(np.frombuffer(b"ACGTNacgtn", np.uint8), 100)
        bases[777] = stray
        assert tally(bases, SequenceType.DNA) is None, chr(stray)


def test_positions_go_on_from_piece_to_piece():
    records = Records(Path("f"), SequenceType.DNA)
    with pytest.raises(UserError, match="f holds no sequence"):
        records.finish()
    records.begin("a")
    with pytest.raises(UserError, match="record 'a' has no bases"):
        records.end()
    pieces = [records.piece(np.frombuffer(b, np.uint8)) for b in (b"AC", b"GTT")]
    assert [(piece.start, len(piece.bases)) for piece in pieces] == [(0, 2), (2, 3)]
    with pytest.raises(UserError, match=r"holds 'L' at position 7, .*--type protein"):
        records.piece(np.frombuffer(b"ALA", np.uint8))
    with pytest.raises(UserError, match="two records are named 'a'"):
        records.begin("a")
    with pytest.raises(UserError, match="record 2 has no name"):
        records.begin("")
