"""Sealed JSON: what was written comes back, and no byte can change unnoticed."""

from __future__ import annotations

import json

import pytest

from megatron_hyena.data.sealed import seal, unseal, write_sealed

CONTENT = {"format": "x", "names": ["a", "ä", 'with "digest": ""'], "size": 3, "none": None}


def test_it_comes_back_and_is_plain_json(tmp_path):
    digest = write_sealed(tmp_path / "a.json", CONTENT)
    data = (tmp_path / "a.json").read_bytes()
    assert data == seal(CONTENT)
    assert unseal(data) == CONTENT
    assert json.loads(data) == {**CONTENT, "digest": digest}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_every_flipped_bit_is_noticed():
    data = seal(CONTENT)
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError):
                unseal(bytes(changed))


def test_bytes_that_are_cut_added_or_reordered_are_noticed():
    data = seal(CONTENT)
    for changed in (data[:-1], data + b" ", b" " + data, data.replace(b"\n", b"\r\n")):
        with pytest.raises(ValueError):
            unseal(changed)


def test_a_file_without_a_digest_is_taken_only_where_that_is_asked():
    data = json.dumps(CONTENT).encode()
    assert unseal(data, required=False) == CONTENT
    with pytest.raises(ValueError, match="digest does not match"):
        unseal(data)
    with pytest.raises(ValueError, match="no JSON object"):
        unseal(b"[]", required=False)
