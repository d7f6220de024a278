"""Tables of labelled sequences: what is read of them, and what is refused in one sentence."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from megatron_hyena.config.finetune import LabelSection, TaskSection
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.reading import read_task

TOKENS = "token_classification"


@pytest.fixture
def read(tmp_path):
    """read(text of a table, **fields of the task) -> TaskData."""

    def write(text: str, *, data=None, vocab=256, file="t.tsv", **fields):
        path = tmp_path / file
        content = text.encode()
        path.write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
        task = TaskSection(table=str(path), **fields)
        return read_task(task, LabelSection(**(data or {})), vocab)

    return write


SPLIT = (
    "sequence\tlabel\tsplit\nACGT\tno\ttrain\nAAA\tyes\ttraining\nCCCC\tno\tval\nGG\tyes\ttest\n"
)


def test_a_table_with_a_split_column(read):
    task = read(SPLIT)
    assert task.classes == ("no", "yes")
    assert [e.bases.tobytes() for e in task.train] == [b"ACGT", b"AAA"]
    assert [int(e.label) for e in (*task.train, *task.valid, *task.test)] == [0, 1, 0, 1]
    assert [e.name for e in task.test] == ["row 4"]


@pytest.mark.parametrize("file", ["t.csv", "t.csv.gz"])
def test_commas_other_names_and_gzip(read, file):
    text = 'id,seq,kind,part\na,ACGT,"x, y",train\nb,TT,z,train\nc,T,z,valid\nd,A,z,test\n'
    columns = {"sequence_column": "seq", "label_column": "kind", "name_column": "id"}
    task = read(text, file=file, split_column="part", **columns, classes=("z", "x, y"))
    assert [(e.name, int(e.label)) for e in task.train] == [("a", 1), ("b", 0)]


def test_sequences_of_a_fasta_file(read, tmp_path):
    fasta = tmp_path / "s.fa"
    fasta.write_text(">p1 of something\nMKV\nLL\n>p2\nMEE\n")
    text = "name\tlabel\tsplit\np2\ta\ttrain\np1\tb\ttrain\n"
    task = read(text, fasta=str(fasta))
    assert [e.bases.tobytes() for e in task.train] == [b"MEE", b"MKVLL"]
    with pytest.raises(UserError, match=r"row 2 names 'p3', which .*s.fa does not hold"):
        read(text.replace("p1", "p3"), fasta=str(fasta))


def test_splits_drawn_by_hash_keep_equal_sequences_together(read):
    generator = np.random.default_rng(0)
    drawn = ["".join(generator.choice(list("ACGT"), 12)) for _ in range(400)]
    rows = [f"{s if n % 2 else s.lower()}\t{'ab'[n % 2]}" for n, s in enumerate(drawn + drawn)]
    task = read("sequence\tlabel\n" + "\n".join(rows), data={"valid_fraction": 0.2})
    sizes = [len(task.split(name)) for name in ("train", "valid", "test")]
    assert sum(sizes) == 800 and 500 < sizes[0] < 620 and 110 < sizes[1] < 210
    letters = [
        {e.bases.tobytes().upper() for e in task.split(s)} for s in ("train", "valid", "test")
    ]
    assert not (letters[0] & letters[1] or letters[0] & letters[2] or letters[1] & letters[2])


def test_labels_of_bases(read):
    text = "sequence\tlabel\tsplit\nACGT\t01.1\ttrain\nAC\t10\tvalid\n"
    task = read(text, kind=TOKENS)
    assert task.train[0].label.tolist() == [0, 1, -100, 1]
    cut = read(text, kind=TOKENS, data={"sequence_length": 3, "truncate": True})
    assert cut.train[0].label.tolist() == [0, 1, -100] and len(cut.train[0].bases) == 3


def test_numbers_in_several_columns(read):
    text = "sequence\tpsi\tcount\tsplit\nA\t0.5\t1\ttrain\nC\t\t3\ttrain\n"
    task = read(text, kind="regression", label_column="psi,count")
    assert task.classes == ("psi", "count")
    assert np.array_equal(task.train[1].label, np.array([np.nan, 3], np.float32), equal_nan=True)
    known = np.array([0.5, 1, 3])
    assert (task.mean, task.std) == pytest.approx((known.mean(), known.std()))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [("none", (1, 1)), ("balanced", (4 / 6, 4 / 2)), ("[0.5, 3]", (0.5, 3))],
)
def test_class_weights(read, weights, wanted):
    text = "sequence\tlabel\tsplit\n" + "".join(
        f"{s}\t{label}\ttrain\n" for s, label in zip(("A", "C", "G", "T"), "aaab", strict=True)
    )
    assert read(text, class_weights=weights).class_weights == pytest.approx(wanted)


def test_equal_sequences_in_two_splits(read):
    text = SPLIT + "acgt\tno\ttest\n"
    with pytest.raises(UserError, match="row 1 of train has the bases of row 5 of test; set data"):
        read(text)
    dropped = read(text + "TT\tno\ttrain\n", data={"duplicates": "drop"})
    assert [e.name for e in dropped.train] == ["row 2", "row 6"]
    assert len(read(text, data={"duplicates": "keep"}).train) == 2


REFUSED = [
    ("sequence\tclass\nA\tx\n", {}, "no column 'label'; its columns are 'sequence', 'class'"),
    ("sequence\tlabel\n", {}, "a header without rows"),
    ("sequence\tlabel\nA\n", {}, "row 1 has another number of cells than the header"),
    (SPLIT.replace("AAA", ""), {}, r"row 2 \(row 2\) has no bases"),
    (SPLIT.replace("yes\ttraining", "\ttraining"), {}, r"row 2 \(row 2\) has no label"),
    (SPLIT.replace("val", "later"), {}, "row 3 is of split 'later'; write train, valid or test"),
    (SPLIT.replace("yes\ttest", "maybe\ttest"), {}, "the class 'maybe' is in test but absent from"),
    (SPLIT, {"classes": ("no", "yes", "so")}, "the class 'so' of task.classes is absent from trai"),
    (SPLIT, {"classes": ("no", "so")}, "the label 'yes' is none of task.classes"),
    (SPLIT.replace("yes", "no"), {}, "the only class in training is 'no'"),
    (SPLIT, {"data": {"sequence_length": 3}}, r"row 1 \(row 1\) has 4 bases, and data.sequence_l"),
    (SPLIT, {"class_weights": "1,2,3"}, "class_weights=1,2,3 must be none, balanced, or 2 numbers"),
    (SPLIT, {"vocab": 70}, r"holds the byte 84 \('T'\), and the model has the ids 0 to 69"),
    (SPLIT, {"kind": "regression"}, "row 1 has the label 'no', which is no finite number"),
    (
        "sequence\tlabel\tsplit\nACGT\t011\ttrain\n",
        {"kind": TOKENS},
        r"row 1 \(row 1\) has 3 labels for 4 bases",
    ),
    (
        "sequence\tlabel\tsplit\nACGT\t2\ttrain\nA\t2\ttrain\n",
        {"kind": "regression"},
        "the training targets label do not vary",
    ),
]


@pytest.mark.parametrize(("text", "more", "message"), REFUSED, ids=[m[:24] for *_, m in REFUSED])
def test_refused_in_one_sentence(read, text, more, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text, **more)
    assert "\n" not in str(caught.value) and "t.tsv" in str(caught.value)


def test_negative_counts(read):
    from megatron_hyena.config.finetune import HeadSection

    text = "sequence\tlabel\tsplit\nA\t2\ttrain\nC\t-1\ttrain\n"
    with pytest.raises(UserError, match=r"head\.loss=poisson is of counts, and -1 is negative"):
        read(text, kind="regression", head=HeadSection(loss="poisson"))
