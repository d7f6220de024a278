"""Tar files byte for byte those of the standard library, by its writer and reader."""

from __future__ import annotations

import hashlib
import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.tar_writer import TarWriter

NAMES = st.from_regex(r"[a-z0-9_-]{1,60}(/[a-z0-9]{1,50})?\.[a-z]{1,30}", fullmatch=True)
SIZES = st.one_of(st.integers(0, 1100), st.sampled_from([511, 512, 513, 9215, 9216, 10240]))


@settings(max_examples=40)
@given(st.dictionaries(NAMES, SIZES, max_size=12))
def test_bytes_offsets_and_sum_are_those_of_the_library(sizes):
    contents = {name: bytes(i % 251 for i in range(size)) for name, size in sizes.items()}
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            tar.addfile(member, io.BytesIO(content))
    found = io.BytesIO()
    writer = TarWriter(found)
    offsets = {name: writer.add(name, content) for name, content in contents.items()}
    digest = writer.finish()
    assert found.getvalue() == expected.getvalue()
    assert writer.size == len(found.getvalue())
    assert digest == hashlib.sha256(found.getvalue()).hexdigest()
    found.seek(0)
    with tarfile.open(fileobj=found) as tar:
        assert {member.name: member.offset_data for member in tar} == offsets
