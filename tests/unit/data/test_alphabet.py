"""IUPAC codes and complements, against Biopython."""

from __future__ import annotations

import numpy as np
from Bio.Seq import reverse_complement as biopython_reverse_complement

from megatron_hyena.data.alphabet import (
    EOD,
    IUPAC,
    MASK,
    PAD,
    first_illegal,
    is_iupac,
    reverse_complement,
)


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)


def test_reverse_complement_is_biopythons_on_every_dna_code():
    dna = IUPAC.replace("U", "").replace("u", "") * 3 + "GATTACAnnN"
    ours = reverse_complement(_bytes(dna)).tobytes().decode("ascii")
    assert ours == biopython_reverse_complement(dna)
    assert reverse_complement(reverse_complement(_bytes(dna))).tobytes() == dna.encode()


def test_uracil_pairs_with_adenine():
    assert reverse_complement(_bytes("GUUu")).tobytes() == b"aAAC"


def test_special_ids_are_no_bases_and_stand_for_themselves():
    special = np.array([EOD, PAD, MASK], dtype=np.uint8)
    assert reverse_complement(special).tolist() == [MASK, PAD, EOD]
    assert not is_iupac(special)


def test_first_illegal_finds_the_first_of_several():
    assert first_illegal(IUPAC.encode()) is None
    assert first_illegal(b"ACGT-NEN") == 4
    assert first_illegal(b"ACEGT-N") == 2
    assert {chr(b) for b in range(256) if is_iupac(np.array([b], dtype=np.uint8))} == set(IUPAC)
