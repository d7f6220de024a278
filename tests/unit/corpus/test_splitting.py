"""Splits of a corpus: groups stay whole, shares are kept, and no order matters."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_hyena.corpus.homology import unsketched
from megatron_hyena.corpus.records import Counts
from megatron_hyena.corpus.splits import Stretch, split_contigs
from megatron_hyena.corpus.splitting import (
    Group,
    SplitRules,
    Splitting,
    naive_splitting,
    split_records,
)
from megatron_hyena.data.store import Contig
from megatron_hyena.errors import UserError
from tests.oracles.sketches import alike, components, record


def _corpus(sizes, sets=None, taxa=None):
    return [
        record(
            f"s{i // 3}/c{i}",
            sets[i] if sets else (),
            size,
            taxa[i % len(taxa)] if taxa else "",
        )
        for i, size in enumerate(sizes)
    ]


def _of(splitting):
    """Name → split; each record lies in one."""
    found: dict[str, str] = {}
    for stretch in splitting.stretches:
        assert found.setdefault(stretch.contig, stretch.split) == stretch.split
    return found


_SIZES = st.lists(st.integers(1, 60), min_size=12, max_size=40)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), seed=st.integers(0, 50), wanted=st.sampled_from([0.8, 0.9, 0.97]))
def test_no_two_splits_hold_similar_records(data, seed, wanted):
    sets = data.draw(st.lists(st.sets(st.integers(0, 60), max_size=4), min_size=14, max_size=30))
    assume(any(sets))
    records = _corpus([10 + len(s) for s in sets], sets)
    rules = SplitRules(
        "cluster", 0.15, 0.15, cluster_similarity=wanted, taxa_together=False, seed=seed
    )
    try:
        result = split_records(records, rules)
    except UserError as error:
        largest = max(len(names) for names in components(records, wanted))
        assert "would get none" in str(error)
        assert largest > 2  # single records fit
        return
    splits = _of(result)
    for a, b in combinations(records, 2):
        if 0 < alike(a, b) >= wanted:
            assert splits[a.name] == splits[b.name]
    grouped = {frozenset(records[i].name for i in group.members) for group in result.groups}
    assert grouped == components(records, wanted)


@settings(max_examples=80, deadline=None)
@given(sizes=_SIZES, seed=st.integers(0, 10**6), by=st.sampled_from(["contig", "taxon"]))
def test_shares_and_any_order(sizes, seed, by):
    records = _corpus(sizes, taxa=[f"t{i}" for i in range(11)])
    rules = SplitRules(by, 0.3, 0.2, seed=seed)
    try:
        result = split_records(records, rules)
    except UserError as error:
        assert "would get none" in str(error)
        groups = naive_splitting(records, rules).groups if by == "contig" else ()
        assert not groups or max(group.bases for group in groups) > 0.2 * sum(sizes)
        return
    bases, total = result.bases(), sum(sizes)
    assert sum(bases.values()) == total
    for split, share in (("valid", 0.3), ("test", 0.2)):
        assert 0 < bases[split] <= share * total
        # What is lacking there is less than any group that went to train after it.
        lacking = share * total - bases[split]
        smallest = min(g.bases for g in result.groups if g.split == "train")
        assert lacking < smallest + max(g.bases for g in result.groups)
    for group in result.groups:
        assert group.bases == sum(records[i].length for i in group.members)
    shuffled = records[:]
    random.Random(seed).shuffle(shuffled)
    assert _of(split_records(shuffled, rules)) == _of(result)


def test_the_rule_written_out():
    """Four groups by hand, in the order of their hashes."""
    import hashlib

    records = [
        record(f"s/{name}", bases=size) for name, size in zip("abcd", [10, 4, 3, 3], strict=True)
    ]
    order = sorted(
        (r.name for r in records), key=lambda n: hashlib.sha256(f"7:{n}".encode()).hexdigest()
    )
    lacking, expected = {"test": 6.0, "valid": 6.0}, {}
    sizes = {r.name: r.length for r in records}
    for name in order:
        split = "test" if lacking["test"] >= lacking["valid"] else "valid"
        expected[name] = split if sizes[name] <= lacking[split] else "train"
        if expected[name] != "train":
            lacking[split] -= sizes[name]
    result = split_records(records, SplitRules("contig", 0.3, 0.3, seed=7))
    assert _of(result) == expected
    assert expected["s/a"] == "train"
    assert result.groups[0] == Group("s/a", (0,), 10, "train")


def test_another_seed_gives_another_split():
    records = _corpus([10] * 40)
    found = {
        tuple(_of(split_records(records, SplitRules("contig", seed=s))).values()) for s in range(5)
    }
    assert len(found) == 5


def test_by_position_is_the_rule_for_contigs_within_what_is_left():
    whole = record("a/x", bases=1000)
    parts = ((10, 400), (500, 930), (960, 1000))
    holed = record("b/y", bases=1000)
    holed = replace(holed, stretches=parts, counts=Counts(860))
    rules = SplitRules("position", 0.1, 0.1, gap=20)
    result = split_records([whole, holed], rules)
    assert list(result.stretches[:3]) == split_contigs([Contig("a/x", 0, 1000)], rules.rule)
    allowed = {s.split: set(range(s.start, s.end)) for s in result.stretches[:3]}
    for split, places in allowed.items():
        found = [range(s.start, s.end) for s in result.stretches[3:] if s.split == split]
        left = places & {i for a, b in parts for i in range(a, b)}
        assert set().union(*found) == left
        assert sum(map(len, found)) == len(left)
    assert result.groups == ()
    fixed = split_records([whole, holed, record("c/z", bases=500)], rules, {"c": "test", "b": ""})
    assert fixed.stretches[-1] == Stretch("test", "c/z", 0, 500)
    assert fixed.stretches[:-1] == result.stretches


def test_fixed_samples_take_their_group_along():
    sets = [{1, 2, 3, 4}, {3, 4, 5}, {90}, {91}, {92}, {93}, {94}, {95}, {96}]
    records = [record(f"s{i}/c", hashes, 10, f"t{i}") for i, hashes in enumerate(sets)]
    rules = SplitRules("cluster", 0.25, 0.25)
    result = split_records(records, rules, {"s1": "test", "s8": "train", "gone": "valid"})
    splits = _of(result)
    assert (splits["s0/c"], splits["s1/c"], splits["s8/c"]) == ("test", "test", "train")
    assert {g.name for g in result.groups if g.fixed} == {"s0/c", "s8/c"}
    # 20 of 90 bases are fixed to test and 2.5 are lacking: no other fits.
    assert sum(split == "test" for split in splits.values()) == 2
    with pytest.raises(UserError, match=r"'s0' is fixed to train and sample 's1' to test.*'s0/c'"):
        split_records(records, rules, {"s1": "test", "s0": "train"})
    with pytest.raises(UserError, match="sample 's1' is fixed to 'dev'; use one of train, valid"):
        split_records(records, rules, {"s1": "dev"})
    by_contig = split_records(
        records, SplitRules("contig", 0.25, 0.25), {"s1": "test", "s0": "train"}
    )
    assert (_of(by_contig)["s0/c"], _of(by_contig)["s1/c"]) == ("train", "test")


def test_taxa_stay_together():
    records = _corpus([10] * 24, [{i} for i in range(24)], ["A; b", "A;b", "A;c", "D", "E", "F"])
    rules = SplitRules("taxon", 0.2, 0.2)
    splits = _of(split_records(records, rules))
    for i, j in combinations(range(24), 2):
        if records[i].taxon.replace(" ", "") == records[j].taxon.replace(" ", ""):
            assert splits[records[i].name] == splits[records[j].name]
    joined = split_records(records, SplitRules("cluster", 0.2, 0.2, taxa_together=True))
    assert sorted(len(group.members) for group in joined.groups) == [4, 4, 4, 4, 8]
    loose = split_records(records, SplitRules("cluster", 0.2, 0.2))
    assert len(loose.groups) == 24
    nameless = [*records, record("z/z", bases=1)]
    with pytest.raises(UserError, match="sample 'z' has no taxon, which splits by taxon need"):
        split_records(nameless, rules)
    with pytest.raises(UserError, match="which splits with taxa_together need"):
        split_records(nameless, SplitRules("cluster", 0.2, 0.2, taxa_together=True))


def test_clusters_need_sketches():
    records = _corpus([10] * 30)
    with pytest.raises(UserError, match="none of the 30 records has a hash, and splits by cluster"):
        split_records(records, SplitRules("cluster"))
    one = [*records, record("z/z", {1}, 10)]
    assert len(split_records(one, SplitRules("cluster")).groups) == 31
    assert unsketched(one) == 30


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "contig",
            "test would get none of the 30 bases: by contig there are 3 groups.* of 10 bases",
        ),
        ("position", "valid would get none of the 30 bases; lower gap, which is 8192"),
    ],
)
def test_too_little_to_divide(by, message):
    records = _corpus([10, 10, 10])
    with pytest.raises(UserError, match=message):
        split_records(records, SplitRules(by, 0.34 if by == "contig" else 0.05, 0.05))


def test_the_naive_split_knows_no_groups_and_may_be_empty():
    records = _corpus([10] * 30, [{1}] * 30)
    naive = naive_splitting(records, SplitRules("cluster", 0.2, 0.2))
    assert naive.bases() == {"train": 180, "valid": 60, "test": 60}
    assert naive_splitting(records[:2], SplitRules("cluster")).bases()["test"] == 0
    assert Splitting(()).bases() == {"train": 0, "valid": 0, "test": 0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"by": "genus"}, "splits are by 'genus'; give one of position, contig, taxon, cluster"),
        ({"cluster_similarity": 0}, "cluster_similarity is 0; give a number above 0"),
        ({"by": "taxon", "taxa_together": True}, "taxa_together is for splits by cluster, not by"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, "fractions are 0.6 and 0.5"),
        ({"gap": -1}, "the gap is -1 bases"),
    ],
)
def test_split_rules_out_of_range(values, message):
    with pytest.raises(UserError, match=message):
        SplitRules(**values)
