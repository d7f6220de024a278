"""Records on disk: round trip, equal bytes, and files that do not belong together."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.records import Counts, Decision, Record, read_records, write_records
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError

_TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
_PLACES = st.lists(st.integers(0, 10**10), max_size=8, unique=True).map(sorted)


def _record(draw_name, taxon, kind, places, hashes, counts):
    stretches = tuple(zip(places[::2], places[1::2], strict=False))
    digest = hashlib.sha256(draw_name.encode()).hexdigest()
    return Record(
        f"sample.{draw_name}",
        draw_name,
        taxon,
        SequenceType(kind),
        places[-1] if places else 0,
        digest,
        stretches,
        Counts(*counts),
        np.array(sorted(hashes), dtype=np.uint64),
    )


_RECORDS = st.lists(
    st.builds(
        _record,
        _TEXT,
        _TEXT,
        st.integers(0, 2),
        _PLACES,
        st.sets(st.integers(0, 2**64 - 1), max_size=6),
        st.tuples(*[st.integers(0, 10**12)] * 5),
    ),
    max_size=6,
)


@settings(max_examples=20, deadline=None)
@given(records=_RECORDS)
def test_round_trip_and_equal_bytes(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("records")
    paths = write_records(folder / "a.b", records)
    assert sorted(path.name for path in folder.iterdir()) == ["a.b.json", "a.b.npz"]
    read = read_records(folder / "a.b")
    assert read == records
    again = write_records(folder / "c", read)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def _one(**changes):
    values = {
        "sample": "s",
        "contig": "c",
        "taxon": "t",
        "type": SequenceType.DNA,
        "length": 9,
        "sha256": "0" * 64,
        "stretches": ((0, 4), (6, 9)),
        "counts": Counts(7, 3, 1, 0, 2),
        "sketch": np.array([1, 2**63], dtype=np.uint64),
    }
    return Record(**{**values, **changes})


def test_equality_sees_every_field():
    assert _one() == _one()
    for name, value in {
        "sample": "x",
        "contig": "x",
        "taxon": "x",
        "type": SequenceType.RNA,
        "length": 10,
        "sha256": "1" * 64,
        "stretches": ((0, 4),),
        "counts": Counts(7, 3, 1, 0, 1),
        "sketch": np.array([1], dtype=np.uint64),
    }.items():
        assert _one(**{name: value}) != _one(), name


def test_names_and_sums():
    assert _one().name == "s/c"
    assert Counts(1, 2, 3, 4, 5) + Counts(10, 20, 30, 40, 50) == Counts(11, 22, 33, 44, 55)
    decision = Decision("s/c", False, "exact duplicate", "s/b", 1.0, 7)
    assert json.loads(json.dumps(decision.as_dict())) == {
        "name": "s/c",
        "kept": False,
        "reason": "exact duplicate",
        "duplicate_of": "s/b",
        "similarity": 1.0,
        "bases": 7,
    }


def test_files_that_are_missing_or_not_of_one_another(tmp_path):
    names, numbers = write_records(tmp_path / "a", [_one()])
    other = write_records(tmp_path / "b", [_one(length=10)])[1]
    good = numbers.read_bytes()
    numbers.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match=r"a\.npz is not the file that a\.json was written with"):
        read_records(tmp_path / "a")
    numbers.write_bytes(good)
    names.write_text(names.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(UserError, match=r"a\.json holds \('megatron-hyena records', 9\)"):
        read_records(tmp_path / "a")
    names.write_text("[1, 2]")
    with pytest.raises(UserError, match=r"a\.json holds \(\), not"):
        read_records(tmp_path / "a")
    names.write_text("{")
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        read_records(tmp_path / "a")
    numbers.unlink()
    with pytest.raises(UserError, match=r"a\.npz is missing"):
        read_records(tmp_path / "a")
