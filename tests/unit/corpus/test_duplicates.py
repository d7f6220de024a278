"""Duplicates and clusters through the index, against comparisons of all pairs."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.curation import CurationRules
from megatron_hyena.corpus.decisions import EXACT, EXCLUDED, NEAR, SHORT, decide, excluded
from megatron_hyena.corpus.duplicates import exact_duplicates, near_duplicates
from megatron_hyena.corpus.homology import HashIndex, clusters, similar_pairs
from megatron_hyena.corpus.records import Decision, Record
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.errors import UserError
from tests.oracles.sketches import alike, components, record

_SETS = st.lists(st.sets(st.integers(0, 25), max_size=12), max_size=9)
_WANTED = st.sampled_from([0.3, 0.8, 0.9, 0.95, 0.97, 0.99, 1.0])


def _records(sets, kind=SequenceType.DNA):
    """As long as their sketches, so that equal lengths happen."""
    return [
        record(f"s{i % 2}/c{i}", hashes, 10 * len(hashes) + 1, kind=kind)
        for i, hashes in enumerate(sets)
    ]


@settings(max_examples=150, deadline=None)
@given(sets=_SETS, least=st.integers(1, 6))
def test_index_misses_nobody(sets, least):
    index = HashIndex([np.array(sorted(s), dtype=np.uint64) for s in sets])
    for i, a in enumerate(sets):
        found = index.sharing(i, least).tolist()
        assert found == sorted(set(found) - {i})
        enough = {j for j, b in enumerate(sets) if j != i and len(a & b) >= least}
        assert enough <= set(found)
        assert all(a & sets[j] for j in found)
        assert all(index.shared(i, j) == len(a & sets[j]) for j in found)


@settings(max_examples=150, deadline=None)
@given(sets=_SETS, wanted=_WANTED, protein=st.booleans())
def test_pairs_and_clusters_are_those_of_all_pairs(sets, wanted, protein):
    records = _records(sets, SequenceType.PROTEIN if protein else SequenceType.DNA)
    expected = {
        frozenset([a.name, b.name])
        for a, b in combinations(records, 2)
        if alike(a, b) > 0 and alike(a, b) >= wanted - 1e-9
    }
    pairs = [
        frozenset([records[a].name, records[b].name]) for a, b in similar_pairs(records, wanted)
    ]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    groups, found = clusters(records, wanted), dict[int, set[str]]()
    for i, item in enumerate(records):
        found.setdefault(groups.first(i), set()).add(item.name)
    assert {frozenset(names) for names in found.values()} == components(records, wanted)


def _greedy(records, wanted):
    """Names of the copies and of what is kept for them, one comparison after the other."""
    kept: list[Record] = []
    found = {}
    for item in sorted(records, key=lambda r: (-r.length, r.sample, r.contig)):
        own = set(item.sketch.tolist())
        for other in kept:
            share = len(own & set(other.sketch.tolist())) / len(own) if own else 0
            if share > 0 and share ** (1 / 21) >= wanted - 1e-9:
                found[item.name] = (other.name, pytest.approx(share ** (1 / 21)))
                break
        else:
            kept.append(item)
    return found


@settings(max_examples=150, deadline=None)
@given(sets=_SETS, wanted=_WANTED, seed=st.integers(0, 99))
def test_near_duplicates_in_any_order(sets, wanted, seed):
    records = _records(sets)
    random.Random(seed).shuffle(records)
    found = {
        records[i].name: (records[j].name, value)
        for i, (j, value) in near_duplicates(records, wanted).items()
    }
    assert found == _greedy(records, wanted)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), max_size=8),
    seed=st.integers(0, 99),
)
def test_exact_duplicates_in_any_order(texts, seed):
    records = [
        record(f"s/{i}", text=text, kind=SequenceType(kind)) for i, (text, kind) in enumerate(texts)
    ]
    first: dict[tuple[str, int], str] = {}
    for item, text in zip(records, texts, strict=True):
        first.setdefault(text, item.name)
    expected = {
        item.name: first[text]
        for item, text in zip(records, texts, strict=True)
        if first[text] != item.name
    }
    random.Random(seed).shuffle(records)
    found = exact_duplicates(records)
    assert {records[i].name: records[j].name for i, (j, _) in found.items()} == expected
    assert {value for _, value in found.values()} <= {1.0}


_ORDER = [
    record("a/long", range(100), 1000, "Bacteria;Firmicutes;s__Bacillus  subtilis"),
    record("a/copy", range(100), 1000, "Bacteria;Firmicutes;s__Bacillus  subtilis", text="a/long"),
    record("b/near", range(1, 100), 900, text="near"),
    record("b/near2", range(1, 100), 900, text="near"),
    record("b/short", (), 0),
    record("c/virus", range(100), 2000, "Viruses; Hepatitis B virus"),
    record("d/other", range(200, 300), 500, "Bacteria"),
]


def test_decisions_say_why_and_instead_of_what():
    rules = CurationRules(near_duplicates=0.95, exclude_taxa=("VIRUSES",))
    assert decide(_ORDER, rules) == [
        Decision("a/long", False, EXACT, "a/copy", 1.0, 1000),
        Decision("a/copy", True, bases=1000),
        Decision("b/near", False, NEAR, "a/copy", 1.0, 900),
        Decision("b/near2", False, EXACT, "a/copy", 1.0, 900),
        Decision("b/short", False, SHORT),
        Decision("c/virus", False, EXCLUDED, bases=2000),
        Decision("d/other", True, bases=500),
    ]
    assert [d.kept for d in decide(_ORDER, CurationRules(exact_duplicates=False))] == [
        *(True for _ in range(4)),
        False,
        True,
        True,
    ]
    backwards = decide(_ORDER[::-1], rules)
    assert backwards[::-1] == decide(_ORDER, rules)
    assert decide([], CurationRules()) == []


def test_taxa_are_found_at_any_level_and_whatever_the_case():
    for name, expected in {
        "bacteria": [0, 1, 6],
        "Bacillus subtilis": [0, 1],
        "s__bacillus SUBTILIS": [0, 1],
        "Viruses; Hepatitis B virus": [5],
    }.items():
        assert excluded(_ORDER, [name]) == expected, name
    with pytest.raises(UserError, match=r"'Bacilus subtilis'.* the nearest is 'bacillus subtilis'"):
        excluded(_ORDER, ["Viruses", "Bacilus subtilis"])
    with pytest.raises(UserError, match="which no sample is of; no sample has a taxon"):
        excluded([record("a/b")], ["Viruses"])


def test_near_duplicates_need_sketches():
    records = [record("a/b"), record("a/c")]
    with pytest.raises(UserError, match="none of the 2 records has a hash, and near duplicates"):
        decide(records, CurationRules(near_duplicates=0.9))


def test_two_records_of_one_name():
    with pytest.raises(UserError, match="two records are named a/b; rename"):
        decide([record("a/b"), record("a/b")], CurationRules())
