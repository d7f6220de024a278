"""What fine-tuned models are compared with: counts by hand, and choices by validation alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import finetune_summary, kmers
from benchmarks.finetune import predictions, shown
from megatron_hyena.finetune.examples import Example, TaskData

NEAR = kmers.Settings(ks=(2,), reaches=(5,), every=3, every_test=2, penalties=(0.1, 1.0))


def example(text: str, label) -> Example:
    return Example("e", np.frombuffer(text.encode(), np.uint8), np.asarray(label))


@pytest.fixture(scope="module")
def tokens() -> TaskData:
    """Two sequences of bases with an N, lower case and a base without a label."""
    generator = np.random.default_rng(5)
    rows = []
    for _ in range(2):
        text = "".join(generator.choice(list("ACGT"), 30))
        text = text[:7] + "N" + text[8:15].lower() + text[15:]
        labels = generator.integers(0, 2, 30).astype(np.int16)
        labels[6] = -100
        rows.append(example(text, labels))
    return TaskData("t", "token_classification", ("a", "b"), rows, rows[:1], rows[1:], (1.0, 1.0))


def number(word: str) -> int:
    return sum("ACGT".index(letter) * 4**place for place, letter in enumerate(reversed(word)))


@pytest.mark.parametrize("phases", [1, 3])
def test_counts_near_a_base_are_those_counted_by_hand(tokens, phases):
    k, reach = 2, 5
    found, labels = kmers.counts_near(tokens, "train", k, reach, NEAR, phases)
    row = 0
    for one in tokens.train:
        text = one.bases.tobytes().decode().upper()
        for place in range(0, len(text), NEAR.every):
            if one.label[place] < 0:
                continue
            wanted: Counter[int] = Counter()
            for begin in range(max(0, place - reach), min(len(text) - k, place + reach) + 1):
                word = text[begin : begin + k]
                if "N" not in word:
                    wanted[number(word) * phases + (begin - place) % phases] += 1
            assert {i: int(n) for i, n in enumerate(found[row]) if n} == wanted
            assert labels[row] == one.label[place]
            row += 1
    assert row == len(found)


def test_counts_of_whole_sequences_and_letters_by_place():
    rows = [example("ACGT", 0), example("TTTT", 1), example("NACg", 0)]
    task = TaskData("t", "classification", ("a", "b"), rows, rows, rows)
    counts, labels = kmers.whole_counts(task, "train", 2)
    words = [[i for i in np.repeat(np.arange(16), row.astype(int))] for row in counts]
    assert words == [
        [number(w) for w in ws] for ws in (["AC", "CG", "GT"], ["TT"] * 3, ["AC", "CG"])
    ]
    assert labels.tolist() == [0, 1, 0]
    places, _ = kmers.letters_by_place(task, "train")
    assert places.shape == (3, 16) and places[0].nonzero()[0].tolist() == [0, 5, 10, 15]
    assert places[1].nonzero()[0].tolist() == [3, 7, 11, 15]


def test_one_label_per_sequence_is_a_task_of_sequences(tokens):
    assert kmers.by_sequence(tokens) is tokens
    labels = np.full((2, 30), -100, dtype=np.int16)
    labels[0, 4], labels[1, 9] = 1, 0
    rows = [replace(e, label=own) for e, own in zip(tokens.train, labels, strict=True)]
    found = kmers.by_sequence(replace(tokens, train=rows, valid=rows, test=rows))
    assert found.kind == "classification" and [int(e.label) for e in found.test] == [1, 0]


def test_the_test_split_chooses_nothing():
    """Labels of the test are turned round: the choice and the predictions stay the same."""
    generator = np.random.default_rng(2)
    texts = ["".join(generator.choice(list("ACGT"), 12)) for _ in range(90)]
    rows = [example(text, np.int64(text.count("A") > 3)) for text in texts]
    task = TaskData("t", "classification", ("a", "b"), rows[:50], rows[50:70], rows[70:], (1, 1))
    turned = [replace(e, label=1 - e.label) for e in task.test]
    settings = kmers.Settings(ks=(1, 2), penalties=(0.1, 1.0))
    found, again = (kmers.regressions(t, settings) for t in (task, replace(task, test=turned)))
    assert set(found) == {"k-mer regression", "regression on letters by place"}
    for name, fitted in found.items():
        assert fitted.choice == again[name].choice and (fitted.told == again[name].told).all()
    figures = kmers.figures(
        task.kind, found["k-mer regression"].told, found["k-mer regression"].labels
    )
    assert figures["accuracy"] >= 0.8


def test_numbers_are_regressed_on():
    generator = np.random.default_rng(4)
    texts = ["".join(generator.choice(list("ACGT"), 6)) for _ in range(80)]
    rows = [example(text, np.array([text.count("G")], np.float32)) for text in texts]
    task = TaskData("t", "regression", ("g",), rows[:50], rows[50:65], rows[65:])
    found = kmers.regressions(task, kmers.Settings(ks=(1,)))
    assert found["k-mer regression"].score > 0.9
    assert found["k-mer regression"].told.shape == (15, 1)


def test_predictions_of_folds_are_read_back(tmp_path):
    rows = ["name\tlabel\tpredicted\tp_-\tp_+", "a\t+\t+\t0.25\t0.75", "b\t-\t+\t0.4\t0.6"]
    (tmp_path / "test_predictions.tsv").write_text("\n".join(rows) + "\n")
    told, labels = predictions(tmp_path)
    assert told.tolist() == [[0.25, 0.75], [0.4, 0.6]] and labels.tolist() == [1, 0]


def test_gains_are_taken_seed_by_seed(tmp_path, capsys):
    figures = {
        "k-mer regression": [{"mcc": 0.5}],
        "random weights": [{"mcc": 0.2}, {"mcc": 0.4}],
        "pretrained": [{"mcc": 0.5}, {"mcc": 0.5}],
    }
    assert "pretrained - random | +0.200 ± 0.141" in shown(figures, ["mcc"])
    worse = figures | {"pretrained": [{"mcc": 0.9}, {"mcc": 0.3}]}
    records = [{"task": n, "metric": "mcc", "figures": f} for n, f in
               (("coding", figures), ("coding_other", figures), ("splice", worse))]  # fmt: skip
    assert finetune_summary.helped_tasks(records) == ["coding", "coding_other"]
    assert finetune_summary.rows_of(records)[0][2:] == [
        "0.500", "", "", "0.300 ± 0.141", "0.500 ± 0.000", "+0.200 ± 0.141",
    ]  # fmt: skip
    assert finetune_summary.main([str(tmp_path)]) == 2
    assert "run benchmarks.finetune" in capsys.readouterr().err
