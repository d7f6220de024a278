"""Labels per base from a genome store, painted base by base here."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_hyena.config.finetune import LabelSection, TaskSection
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.batches import turned
from megatron_hyena.finetune.reading import read_task

LENGTHS = {"c1": 230, "c2": 120, "c3": 90}
CDS = [("c1", 11, 50, "+"), ("c1", 40, 90, "-"), ("c1", 205, 230, "+"), ("c2", 1, 33, "-")]
CDS += [("c2", 100, 110, "+"), ("c3", 60, 61, "+"), ("c3", 5, 9, "-")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genome")
    generator = np.random.default_rng(1)
    bases = {n: "".join(generator.choice(list("ACGT"), k)) for n, k in LENGTHS.items()}
    bases["c2"] = bases["c2"][:40] + "N" * 20 + bases["c2"][60:]
    (folder / "g.fa").write_text("".join(f">{n}\n{s}\n" for n, s in bases.items()))
    rows = [f"{c}\tx\tCDS\t{a}\t{b}\t.\t{s}\t0\tID=i{n}" for n, (c, a, b, s) in enumerate(CDS)]
    (folder / "g.gff3").write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    write_store(folder / "with.zarr", [folder / "g.fa"], [folder / "g.gff3"])
    write_store(folder / "bare.zarr", [folder / "g.fa"])
    return folder, bases


def painted(contig: str, classes) -> list[int]:
    """The class of each base, by asking every feature about every base."""
    found = []
    for position in range(1, LENGTHS[contig] + 1):
        strands = {s for c, a, b, s in CDS if c == contig and a <= position <= b}
        names = [{"+": "coding_plus", "-": "coding_minus"}[s] for s in strands]
        if "coding" in classes and strands:
            names = ["coding"]
        found.append(min((classes.index(n) for n in names if n in classes), default=0))
    return found


def task_of(files, store="with.zarr", features=("coding",), data=None, **more):
    section = TaskSection(
        kind="token_classification", store=str(files[0] / store), features=features, **more
    )
    return read_task(section, LabelSection(**({"sequence_length": 20} | (data or {}))), 256)


@pytest.mark.parametrize("source", ["track", "annotation"])
@pytest.mark.parametrize("features", [("coding",), ("coding_minus", "coding_plus")])
def test_every_base_has_its_class(files, source, features):
    given = {"store": "bare.zarr", "annotation": str(files[0] / "g.gff3")}
    task = task_of(
        files, features=features, valid_contigs=("c2",), test_contigs=("c3",),
        **(given if source == "annotation" else {}),
    )  # fmt: skip
    assert task.classes == ("other", *features)
    seen = 0
    for contig, split in (("c1", task.train), ("c2", task.valid), ("c3", task.test)):
        wanted = painted(contig, task.classes)
        for example in split:
            name, _, place = example.name.partition(":")
            first, last = map(int, place.split("-"))
            assert name == contig
            assert example.bases.tobytes().decode() == files[1][contig][first - 1 : last]
            assert example.label.tolist() == wanted[first - 1 : last]
            seen += len(example.label)
    assert seen == sum(LENGTHS.values()) - 20, "but for the window of N"


def test_the_end_of_each_contig_is_held_out(files):
    task = task_of(files, data={"valid_fraction": 0.2, "test_fraction": 0.2})
    names = [e.name for e in task.test]
    assert [name for name in names if name.startswith("c1:")] == [
        "c1:185-204",
        "c1:205-224",
        "c1:225-230",
    ]
    # 46 bases each to test and to validate on, and 20 left out before each of them.
    assert next(e.name for e in task.valid if e.name.startswith("c1:")) == "c1:119-138"
    assert [e.name for e in task.train if e.name.startswith("c1:")][-1] == "c1:81-98"


def test_the_other_strand(files):
    features = ("coding_minus", "coding_plus")
    task = task_of(
        files, features=features, valid_contigs=("c2",), data={"reverse_complement": True}
    )
    example = task.train[0]
    other = turned(example, task)
    complement = str.maketrans("ACGT", "TGCA")
    letters = example.bases.tobytes().decode()
    assert other.bases.tobytes().decode() == letters.translate(complement)[::-1]
    assert other.label.tolist() == [{0: 0, 1: 2, 2: 1}[c] for c in example.label[::-1].tolist()]
    with pytest.raises(UserError, match="turns coding_plus into its counterpart"):
        task_of(files, features=("coding_plus",), data={"reverse_complement": True})


def test_shards_have_splits_and_labels_of_their_own(files):
    rule = SplitRule(0.2, 0.2, gap=20)
    for features in (True, False):
        settings = ShardSettings(rule=rule, features=features)
        folder = files[0] / f"shards_{features}"
        write_shards(GenomeStore.open(files[0] / "with.zarr"), folder, settings)
    section = TaskSection(kind="token_classification", shards=str(files[0] / "shards_True"))
    data = LabelSection(sequence_length=20, valid_fraction=0.2, test_fraction=0.2)
    found = read_task(section, data, 256)
    wanted = task_of(files, data={"valid_fraction": 0.2, "test_fraction": 0.2})
    for split in ("train", "valid", "test"):
        pairs = zip(found.split(split), wanted.split(split), strict=True)
        assert found.split(split)
        for one, other in pairs:
            assert one.name == other.name
            assert one.bases.tobytes() == other.bases.tobytes()
            assert one.label.tolist() == other.label.tolist()
    bare = TaskSection(kind="token_classification", shards=str(files[0] / "shards_False"))
    with pytest.raises(UserError, match=r"write them with tools.make_shards --features"):
        read_task(bare, data, 256)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"store": "bare.zarr"}, "has no track features; make it anew with --annotation"),
        ({"valid_contigs": ("c9",)}, "'c9' of valid_contigs and test_contigs is no contig of it"),
        (
            {"valid_contigs": ("c1",), "test_contigs": ("c1",)},
            "'c1' of valid_contigs and test_contigs is both",
        ),
        ({"features": ("trna",)}, "the class 'trna' of task.classes is absent from training"),
        ({"valid_contigs": ("c1", "c2", "c3")}, "nothing is left for training"),
    ],
)
def test_bad_requests(files, more, message):
    with pytest.raises(UserError, match=message):
        task_of(files, **more)
