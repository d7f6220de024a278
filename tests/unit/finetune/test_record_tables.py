"""The tables of the fine-tuning records: nothing is both learned from and tested on."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import finetune_tasks as tasks
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    """300 sequences of 8 bases, about a third of them twice, in classes of unlike size."""
    generator = np.random.default_rng(3)
    letters = ["".join(generator.choice(list("ACGT"), 8)) for _ in range(200)]
    drawn = [letters[i] for i in generator.integers(0, 200, 300)]
    return [(text, "yes" if text[0] == "A" else "no") for text in drawn]


def shares(rows, splits) -> dict[tuple[str, str], float]:
    """Of each class, the share in each split."""
    labels = np.array([label for _, label in rows])
    return {
        (label, split): float(np.mean(np.array(splits)[labels == label] == split))
        for label in set(labels)
        for split in ("train", "valid", "test")
    }


def test_equal_sequences_go_before_the_split(rows):
    kept = tasks.distinct(rows)
    assert len(kept) == len({text for text, _ in rows}) < len(rows)
    assert {*kept} == {*rows}
    assert tasks.distinct([*rows, ("AAAA", "yes"), ("AAAA", "no"), ("CC", "no")])[-1][0] == "CC"


def test_a_deal_has_the_shares_in_every_class_and_follows_the_letters(rows):
    kept = tasks.distinct(rows)
    splits = tasks.deal(kept)
    for (label, split), share in shares(kept, splits).items():
        wanted = {"train": 0.4, "valid": 0.2, "test": 0.4}[split]
        count = sum(own == label for _, own in kept)
        assert abs(share - wanted) <= 1 / count
    order = np.random.default_rng(0).permutation(len(kept))
    again = tasks.deal([kept[i] for i in order])
    assert again == [splits[i] for i in order]
    assert tasks.deal(kept, "other") != splits


def test_every_row_is_tested_in_one_fold_and_validates_in_another(rows):
    kept = tasks.distinct(rows)
    found = np.array([tasks.folds(kept, fold, "deal 0") for fold in range(tasks.FOLDS)])
    for split in ("test", "valid"):
        assert ((found == split).sum(0) == 1).all()
    for splits in found:
        for (_, split), share in shares(kept, splits).items():
            assert abs(share - (0.6 if split == "train" else 0.2)) < 0.05
    assert tasks.folds(kept, 0, "deal 1") != list(found[0])


def test_indicators_become_letters_and_junctions_lie_in_the_middle():
    columns = {f"V{i + 1}": [t[i] for t in ("100010", "001000")] for i in range(6)}
    assert tasks.splice_letters({**columns, "Class": ["ei", "n"]}) == ["AC", "GT"]
    rows = [("ACGTAC", "ei"), ("CCGTAC", "ie"), ("GCGTAC", "n")]
    labels = [label for _, label in tasks.in_the_middle(rows)]
    assert labels == ["...d..", "...a..", "...n.."]


def test_splice_sites_keep_their_published_split():
    rows = [
        {"x": "GGAGUGAUG", "y": "0.02", "set": "training"},
        {"x": "AGUGUGCAA", "y": "-0.5", "set": "test"},
    ]
    sites, splits = tasks.splice_sites(rows)
    assert sites == [("GGAGTGATG", "0.02"), ("AGTGTGCAA", "-0.5")]
    assert splits == ["train", "test"]
    with pytest.raises(UserError, match="AGTGTGCAA has two rows"):
        tasks.splice_sites([*rows, {"x": "AGUGUGCAA", "y": "1", "set": "training"}])


def test_contigs_of_the_test_are_not_pretrained_on(tmp_path):
    generator = np.random.default_rng(1)
    names = [f"chr_{n}" for n in range(7, 15)]
    texts = {name: "".join(generator.choice(list("ACGT"), 50)) for name in names}
    (tmp_path / "all.fa").write_text("".join(f">{n}\n{t}\n" for n, t in texts.items()))
    write_store(tmp_path / "genome.zarr", [tmp_path / "all.fa"])
    store = GenomeStore.open(tmp_path / "genome.zarr")
    limits = {"chr_8": 0, "chr_9": 20}
    tasks.write_fasta(tmp_path / "some.fa", store, limits)
    assert (tmp_path / "some.fa").read_text() == (
        f">chr_8\n{texts['chr_8']}\n>chr_9\n{texts['chr_9'][:20]}\n"
    )
    gff = ["# made by hand\n", *(f"{n}\tx\tCDS\t{s}\t{s + 9}\t.\t+\t0\tid 1\n"
           for n in names for s in (11, 12))]  # fmt: skip
    kept = [line.split("\t") for line in tasks.rows_within(gff, limits)]
    assert [(cells[0], cells[3]) for cells in kept] == [
        ("chr_8", "11"), ("chr_8", "12"), ("chr_9", "11"),
    ]  # fmt: skip
    held_out = {*tasks.VALID_CONTIGS, *tasks.TEST_CONTIGS}
    assert not held_out & {*tasks.TRAIN_CONTIGS} and len(held_out) == 5


def test_what_is_missing_is_named(tmp_path, capsys):
    arguments = ["--downloads", str(tmp_path), "--alignment", str(tmp_path), "--output"]
    assert tasks.main([*arguments, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "DNA.rda" in said and said.count("\n") == 1
