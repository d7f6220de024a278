"""Weights of a sample sheet: how often training shows the bases of each sample."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.config import load_config
from megatron_hyena.corpus.build import Corpus, build
from megatron_hyena.corpus.options import load_options
from megatron_hyena.corpus.verify import findings_of, open_check
from megatron_hyena.data.blend import CYCLE, BlendedStream
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.errors import UserError
from pretrain.data import open_data

LENGTH = 50
WEIGHTS = {"one": 1, "two": 2, "half": 0.5, "other": 2}


@contextmanager
def silent(stage: str, total: int):
    yield lambda size: None


def make(folder: Path, weights: dict[str, float], held_out: float = 0.2) -> Path:
    """A sample for each name, of four contigs; whole contigs go to a split."""
    draw = np.random.default_rng(5)
    rows = ["name\tpath\tweight"]
    for number, (name, weight) in enumerate(weights.items()):
        contigs = [
            draw.choice(np.frombuffer(b"ACGT", np.uint8), 1500 + 700 * number).tobytes()
            for _ in range(4)
        ]
        text = b"".join(b">%d\n%s\n" % pair for pair in enumerate(contigs))
        (folder / f"{name}.fa").write_bytes(text)
        rows.append(f"{name}\t{name}.fa\t{weight}")
    (folder / "samples.tsv").write_text("\n".join(rows) + "\n")
    fractions = [f"splits.{split}_fraction={held_out}" for split in ("valid", "test")]
    options = load_options(
        None,
        [f"inputs.sheet={folder / 'samples.tsv'}", "splits.by=contig", *fractions],
    )
    build(Corpus.open(folder / "corpus", options), silent)
    return folder / "corpus"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("weights"), WEIGHTS)


def opened(train: str | Path, *overrides: str):
    keys = [f"data.train={train}", f"data.sequence_length={LENGTH}", "train.global_batch_size=4"]
    return open_data(load_config(None, [*keys, *overrides])).train


def shown(stream, windows: int) -> Counter[str]:
    """How many bytes of each sample the first windows hold, by the contigs they are cut from."""
    owners: dict[bytes, str] = {}
    for part in stream.streams:
        assert isinstance(part, WindowStream)
        for run in part.runs:
            letters = run.read(0, run.length).tobytes()
            sample = run.contig.partition("/")[0]
            owners |= {letters[i : i + 12]: sample for i in range(len(letters) - 11)}
    found: Counter[str] = Counter()
    for window in range(windows):
        letters = stream.window(window).bases[:-1].tobytes().strip(b"\x01")
        if len(letters) >= 12:
            found[owners[letters[:12]]] += len(letters)
    return found


def test_training_sequence_of_each_weight_is_a_folder_and_held_out_sequence_is_not(corpus):
    folders = {str(p.parent.relative_to(corpus / "shards")) for p in corpus.rglob("index.json")}
    assert folders == {"weight-0.5/train", "weight-1/train", "weight-2/train", "valid", "test"}
    for folder in folders:
        index = ShardIndex.read(corpus / "shards" / folder)
        samples = {s.contig.partition("/")[0] for shard in index.shards for s in shard.samples}
        expected = float(folder.partition("/")[0].removeprefix("weight-")) if "w" in folder else 1.0
        assert index.weight == expected
        if "w" in folder:
            assert samples == {name for name, weight in WEIGHTS.items() if weight == expected}
    assert not [line for check in open_check(corpus) for line in findings_of(check)]


def test_a_base_is_shown_as_often_as_its_weight_says(corpus):
    stream = opened(f"{corpus}/shards/**/train", "data.reverse_complement=false")
    assert isinstance(stream, BlendedStream)
    assert len(stream.streams) == 3
    sizes: Counter[str] = Counter()
    for part in stream.streams:
        assert isinstance(part, WindowStream)
        for run in part.runs:
            sizes[run.contig.partition("/")[0]] += run.length
    assert set(sizes) == set(WEIGHTS)
    found = shown(stream, 2 * CYCLE)
    often = {name: found[name] / sizes[name] for name in sizes}  # times each base was shown
    assert often["one"] > 3
    for name, weight in WEIGHTS.items():
        assert often[name] / often["one"] == pytest.approx(weight, rel=0.02), often


def test_chosen_shares_are_of_the_whole_corpus_and_weights_hold_within(corpus, tmp_path):
    other = make(tmp_path, {"plain": 1}, held_out=0.3)
    train = f"{corpus}/shards/**/train,{other}/shards/train"
    plain = opened(train).counts[0]
    assert len(plain) == 3  # weight 1 of both together
    counts = opened(train, "data.weights=[0.75,0.25]").counts[0]
    assert counts[-1] == CYCLE // 4
    alone = opened(f"{corpus}/shards/**/train").counts[0]
    np.testing.assert_allclose(counts[:-1] / (0.75 * CYCLE), alone / CYCLE, atol=2 / CYCLE)


def test_a_corpus_of_one_weight_is_one_stream_in_the_order_it_always_had(tmp_path, corpus):
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = make(tmp_path / "two", dict.fromkeys(WEIGHTS, 2))
    one = make(tmp_path / "one", dict.fromkeys(WEIGHTS, 1))
    name = "shards/train/shard-000000.tar"
    assert (two / name).read_bytes() == (one / name).read_bytes()
    indices = [ShardIndex.read(root / "shards/train") for root in (one, two)]
    assert [index.weight for index in indices] == [1, 2]
    assert b'"weight": 2.0,\n "provenance"' in (two / "shards/train/index.json").read_bytes()
    assert indices[0].digest != indices[1].digest  # a run does not go on across the change
    streams = [opened(root / "shards/train") for root in (one, two)]
    assert all(type(stream) is WindowStream for stream in streams)
    assert streams[0].source == str(one / "shards/train")
    for position in (0, 7, 100):
        assert len({stream.window(position).bases.tobytes() for stream in streams}) == 1


def test_weights_that_no_blend_can_hold_are_refused_with_the_fix(tmp_path):
    corpus = make(tmp_path, {"one": 1, "tiny": 1e-6, "two": 1})
    with pytest.raises(UserError, match=r"below one window in 4096; .*in the sample sheet"):
        opened(f"{corpus}/shards/**/train")


def test_a_weight_in_an_index_is_a_number_above_zero(corpus, tmp_path):
    index = ShardIndex.read(corpus / "shards/weight-2/train")
    for weight in (0.0, -1.0, float("nan")):
        object.__setattr__(index, "weight", weight)
        index.write(tmp_path)
        with pytest.raises(UserError, match=r"index\.json is damaged \(its weight is"):
            ShardIndex.read(tmp_path)
