"""The bases' own way of writing zstd: frames that all readers know, and smaller ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from numcodecs import Zstd
from zarr.codecs import ZstdCodec

from megatron_hyena.corpus.appender import Appender
from megatron_hyena.data.letters_frame import letters_frame
from megatron_hyena.data.store import create_array

SIZE = 1 << 18


def draw(letters: bytes, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.frombuffer(letters, np.uint8), SIZE)


CASES = {
    "acgt": draw(b"ACGT"),
    "with N": np.concatenate([draw(b"ACGT"), np.full(SIZE, ord("N"), np.uint8)]),
    "cases": draw(b"ACGT") | (np.arange(SIZE) // 300 % 2 * 32).astype(np.uint8),
    "protein": draw(b"ACDEFGHIKLMNPQRSTVWY"),
    "any byte": draw(bytes(range(256))),
    "one": np.array([65], np.uint8),
}


@pytest.mark.parametrize("name", CASES)
def test_numcodecs_reads_it(name):
    frame = letters_frame(CASES[name])
    assert np.array_equal(np.frombuffer(Zstd().decode(frame), np.uint8), CASES[name])


@pytest.mark.parametrize("name, most", [("acgt", 0.255), ("with N", 0.130), ("cases", 0.345)])
def test_smaller_than_level_one(name, most):
    """Two bits a base and what tables take; the case of half of the letters is another 0.09."""
    values = CASES[name]
    frame = letters_frame(values)
    assert len(frame) < most * len(values)
    level_one = len(Zstd(level=1, checksum=True).encode(values))
    assert len(frame) < level_one if name != "cases" else len(frame) < 1.01 * level_one


def test_readers_see_plain_zstd(tmp_path):
    group = zarr.open_group(str(tmp_path), mode="w", zarr_format=3)
    with Appender(create_array(group, "bases", "uint8", 0), letters_frame) as bases:
        bases.add(CASES["acgt"])
    told = json.loads((tmp_path / "bases" / "zarr.json").read_text())["codecs"]
    assert told[-1] == ZstdCodec(level=1, checksum=True).to_dict()
    read = zarr.open_array(str(tmp_path / "bases"), mode="r")
    assert np.array_equal(read[:], CASES["acgt"])
    assert (tmp_path / "bases" / "c" / "0").stat().st_size < 0.27 * SIZE
    read = zarr.open_array(str(tmp_path / "bases"), mode="a")
    read[:8] = 67  # the library writes on
    expected = [*[67] * 8, *CASES["acgt"][8:]]
    assert np.array_equal(read[:], expected)


def test_a_flipped_bit_is_found():
    frame = bytearray(letters_frame(CASES["acgt"]))
    frame[len(frame) // 2] ^= 1
    with pytest.raises(RuntimeError):
        Zstd().decode(bytes(frame))
