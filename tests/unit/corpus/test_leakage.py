"""Leakage counted against sets of k-mers, and two strains that must never be parted."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from Bio.Seq import Seq

from megatron_hyena.corpus import leakage
from megatron_hyena.corpus.curation import survey
from megatron_hyena.corpus.leakage import of_sequences, of_sketches
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.records import Counts, Record
from megatron_hyena.corpus.splits import Stretch
from megatron_hyena.corpus.splitting import (
    SplitRules,
    Splitting,
    naive_splitting,
    split_records,
)
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.formats.fasta import read_fasta
from tests.oracles.sketches import record

SPLITS = ("train", "valid", "test")


def _kmers(text, kind):
    k, found = (12, set()) if kind is SequenceType.PROTEIN else (31, set())
    for i in range(len(text) - k + 1):
        kmer = text[i : i + k]
        if set(kmer) <= set("ACGT" if kind.is_nucleic else "ACDEFGHIKLMNPQRSTVWY"):
            other = str(Seq(kmer).reverse_complement()) if kind.is_nucleic else kmer
            found.add(min(kmer, other))
    return found


@pytest.fixture
def corpus(monkeypatch):
    """Sequences that share pieces, on either strand, and protein beside them; two splittings."""
    monkeypatch.setattr(leakage, "_PIECE", 40)
    rng = np.random.default_rng(5)
    texts, kinds = {}, {}
    common = "".join(rng.choice(list("ACGT"), 90))
    for i in range(6):
        own = "".join(rng.choice(list("ACGT"), 100))
        part = common[i * 5 :] if i % 2 else str(Seq(common).reverse_complement())
        texts[f"s/{i}"] = own + part + "N" + own[::-1]
        kinds[f"s/{i}"] = SequenceType.DNA
    peptide = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 50))
    for i in (6, 7):
        texts[f"s/{i}"] = "M" * i + peptide[i:]
        kinds[f"s/{i}"] = SequenceType.PROTEIN
    records = [
        Record("s", n[2:], "", kinds[n], len(t), "0" * 64, ((0, len(t)),), Counts(len(t)))
        for n, t in texts.items()
    ]
    halves = [
        Stretch(SPLITS[(i + half) % 3], name, half * len(text) // 2, (half + 1) * len(text) // 2)
        for i, (name, text) in enumerate(texts.items())
        for half in (0, 1)
    ]
    whole = [Stretch(SPLITS[i % 3], n, 0, len(t)) for i, (n, t) in enumerate(texts.items())]
    return texts, records, Splitting(tuple(whole)), Splitting(tuple(halves))


def _read(texts):
    return lambda name, start, end: np.frombuffer(texts[name][start:end].encode(), np.uint8)


def test_all_kmers_of_all_splits(corpus):
    texts, records, before, after = corpus
    kinds = {r.name: r.type for r in records}
    report = of_sequences(records, before, after, _read(texts))
    shares = []
    for splitting, found in ((before, report.before), (after, report.after)):
        sets: dict[str, set[str]] = {split: set() for split in SPLITS}
        for stretch in splitting.stretches:
            text = texts[stretch.contig][stretch.start : stretch.end]
            sets[stretch.split] |= _kmers(text, kinds[stretch.contig])
        assert found.kmers == {split: len(kmers) for split, kmers in sets.items()}
        for a in SPLITS:
            for b in SPLITS:
                if a != b:
                    assert found.fraction(a, b) == len(sets[a] & sets[b]) / len(sets[a])
                    shares.append(found.fraction(a, b))
    assert min(shares) < 0.1 < max(shares)
    assert report.method.startswith("all 31-mers")


def test_a_sample_of_kmers_tells_nearly_the_same(corpus):
    texts, records, before, after = corpus
    every = of_sequences(records, before, after, _read(texts))
    some = of_sequences(records, before, after, _read(texts), scaled=3)
    assert some.method.startswith("one in 3 of the 31-mers")
    for split in SPLITS:
        count, expected = some.before.kmers[split], every.before.kmers[split] / 3
        assert abs(count - expected) < 5 * expected**0.5
    gaps = [
        some.before.fraction(a, b) - every.before.fraction(a, b)
        for a in SPLITS
        for b in SPLITS
        if a != b
    ]
    assert max(map(abs, gaps)) < 0.12


def test_what_is_counted_is_bounded(corpus, monkeypatch):
    texts, records, before, after = corpus
    monkeypatch.setattr(leakage, "EXACT_BASES", 500)
    bases = sum(map(len, texts.values()))
    report = of_sequences(records, before, after, _read(texts))
    assert report.method.startswith(f"one in {-(-bases // 500)} of")


def test_sketches_and_the_report():
    records = [
        record("s/a", {1, 2, 3, 4}),
        record("s/b", {3, 4, 5}),
        record("s/c", {5, 9}),
        record("s/dropped", {1, 2}),
    ]

    def split(*names):
        return Splitting(
            tuple(Stretch(s, r.name, 0, 100) for s, r in zip(names, records, strict=False))
        )

    report = of_sketches(records, split("train", "valid", "test"), split("train", "train", "test"))
    assert report.before.kmers == {"train": 4, "valid": 3, "test": 2}
    assert report.before.fraction("valid", "train") == 2 / 3
    assert report.after.fraction("test", "train") == 0.5
    assert report.after.fraction("valid", "train") == 0.0
    text = report.as_dict()
    assert json.loads(json.dumps(text)) == text
    assert text["before"]["fractions"]["train"] == {"valid": 0.5, "test": 0.0}
    assert text["after"]["kmers"] == {"train": 5, "valid": 0, "test": 2}
    lines = report.table().splitlines()
    assert lines[1].split() == ["split", "k-mers", "in", "train", "in", "valid", "in", "test"]
    assert lines[3].split() == ["naive", "valid", "3", "66.6667%", "33.3333%"]
    assert lines[7].split() == ["chosen", "test", "2", "50.0000%", "0.0000%"]
    assert len(lines) == 8
    both = Splitting((Stretch("train", "s/a", 0, 50), Stretch("test", "s/a", 60, 90)))
    with pytest.raises(ValueError, match="s/a lies in two splits"):
        of_sketches(records, both, both)


@pytest.fixture(scope="module")
def strains(tmp_path_factory, chlamydia_files):
    """400,000 bases of a chromosome in 16 contigs, and two strains of it.

    One in a hundred of their bases is drawn anew, and every other contig is of the opposite strand.
    `two` is cut where `one` is, `three` elsewhere. Eight random contigs are like none.
    """
    folder = tmp_path_factory.mktemp("strains")
    ((_, chromosome),) = read_fasta(chlamydia_files[0])
    bases, rng = chromosome[:400_000], np.random.default_rng(11)
    letters = np.frombuffer(b"ACGT", np.uint8)
    changed = np.where(rng.random(len(bases)) < 0.01, rng.choice(letters, len(bases)), bases)
    texts = {"other": [rng.choice(letters, 20_000).tobytes().decode() for _ in range(8)]}
    for sample, strain, first in (
        ("one", bases, 25_000),
        ("two", changed, 25_000),
        ("three", changed, 13_000),
    ):
        places = [0, *range(first, 400_000, 25_000), 400_000]
        parts = [strain[start:end].tobytes().decode() for start, end in pairwise(places)]
        parts[1::2] = [str(Seq(part).reverse_complement()) for part in parts[1::2]]
        texts[sample] = parts if sample == "one" else parts[::-1]
    stores, records = {}, {}
    for sample, parts in texts.items():
        fasta = folder / f"{sample}.fa"
        fasta.write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(parts)))
        stores[sample] = write_store(folder / f"{sample}.zarr", [fasta])
        records[sample] = survey(stores[sample], sample)

    def read(name, start, end):
        sample, contig = name.split("/")
        return stores[sample].read(contig, start, end)

    return records, read


def _in_train(overlap):
    """Of valid and of test."""
    return [overlap.fraction(split, "train") for split in ("valid", "test")]


def _renamed(records, seed):
    """Other names, so that hashes and first names of groups are others too."""
    return [replace(r, sample=f"{r.sample}{seed}") for r in records]


def test_two_strains_never_end_in_different_splits(strains):
    records, read = strains
    together = [*records["one"], *records["other"], *records["two"]]
    for seed in range(40):
        renamed = _renamed(together, seed)
        rules = SplitRules("cluster", 0.2, 0.2, seed=seed)
        chosen, naive = split_records(renamed, rules), naive_splitting(renamed, rules)
        splits = [stretch.split for stretch in chosen.stretches]
        assert splits[:16] == splits[24:][::-1]
        assert set(splits) == {"train", "valid", "test"}
        report = of_sketches(renamed, naive, chosen)
        assert max(_in_train(report.before)) > 0.1, seed
        assert max(_in_train(report.after)) < 0.001
    rules = SplitRules("cluster", 0.2, 0.2)
    chosen, naive = split_records(together, rules), naive_splitting(together, rules)
    counted = of_sequences(together, naive, chosen, read)
    assert counted.method.startswith("all 31-mers")
    assert max(_in_train(counted.before)) > 0.3
    assert max(_in_train(counted.after)) < 0.001


def test_strains_that_are_cut_elsewhere_hang_together(strains):
    """Each contig of one overlaps two of the other: all of both are one cluster."""
    records, _ = strains
    together = [*records["one"], *records["other"], *records["three"]]
    for seed in range(10):
        chosen = split_records(together, SplitRules("cluster", 0.08, 0.08, seed=seed))
        splits = [s.split for s in chosen.stretches if not s.contig.startswith("other")]
        assert splits == ["train"] * 33
