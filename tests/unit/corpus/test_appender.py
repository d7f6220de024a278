"""Values appended in any portions make the same array, and a write that fails is not passed by."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from megatron_hyena.corpus.appender import Appender
from megatron_hyena.data import store
from megatron_hyena.data.letters_frame import letters_frame
from megatron_hyena.data.store import create_array


@pytest.mark.parametrize(
    "dtype, frame", [("uint8", None), ("float32", None), ("uint8", letters_frame)]
)
def test_portions_do_not_matter(tmp_path, monkeypatch, dtype, frame):
    monkeypatch.setattr(store, "CHUNK", 64)
    draw = np.random.default_rng(0)
    values = draw.integers(0, 5, 1000).astype(dtype)
    contents = []
    for number, most in enumerate((1, 7, 64, 200, 1000)):
        group = zarr.create_group(str(tmp_path / str(number)), zarr_format=3)
        with Appender(create_array(group, "a", dtype, 0), frame) as appender:
            at = 0
            while at < len(values):
                size = int(draw.integers(0, most + 1))
                appender.add(values[at : at + size])
                at += size
        assert appender.length == len(values)
        array = zarr.open_array(str(tmp_path / str(number) / "a"), mode="r")
        assert np.array_equal(array[:], values)
        files = sorted(path for path in (tmp_path / str(number)).rglob("*") if path.is_file())
        contents.append([path.read_bytes() for path in files])
    assert all(content == contents[0] for content in contents)


def test_nothing_and_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 8)
    group = zarr.create_group(str(tmp_path / "g"), zarr_format=3)
    with Appender(create_array(group, "empty", "uint8", 0)) as appender:
        appender.add(np.empty(0, dtype=np.uint8))
    assert zarr.open_array(str(tmp_path / "g/empty"), mode="r").shape == (0,)

    class FullDiskError(OSError):
        pass

    appender = Appender(create_array(group, "a", "uint8", 0))
    monkeypatch.setattr(appender, "_store", lambda start, chunk, filled: _raise(FullDiskError))
    with pytest.raises(FullDiskError), appender:
        appender.add(np.ones(20, dtype=np.uint8))


def _raise(kind: type[Exception]) -> None:
    raise kind
