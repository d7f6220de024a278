"""The tool that writes `boundaries`: against loops over the store, and its sentences."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.data.store import GenomeStore
from tests.oracles.drawing import small_config, small_model
from tools import make_patches

LENGTHS = (300, 1, 90, 2)
LENGTH, CONTEXT = 32, 16


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store of four records with N, a track of numbers half unknown, and one of marks."""
    folder = tmp_path_factory.mktemp("patches")
    draw = np.random.default_rng(7)
    letters = np.frombuffer(b"ACGTacgtN", np.uint8)
    texts = [draw.choice(letters, n).tobytes() for n in LENGTHS]
    (folder / "a.fa").write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(texts)))
    store = write_store(folder / "genome.zarr", [folder / "a.fa"])

    def numbers(contig):
        found = draw.normal(size=contig.length).astype(np.float32)
        found[draw.random(contig.length) < 0.5] = np.nan
        return found

    add_track(store, "conservation", numbers, {})
    add_track(store, "marks", lambda contig: np.ones(contig.length, dtype=np.bool_), {})
    add_track(store, "flat", lambda contig: np.zeros(contig.length, dtype=np.float32), {})
    return store.path


@pytest.fixture
def store(tmp_path, original):
    return shutil.copytree(original, tmp_path / "genome.zarr")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_model(small_config("SL")).float().save_pretrained(folder)
    return folder


def _boundaries(path) -> list[np.ndarray]:
    store = GenomeStore.open(path)
    track = store.track("boundaries")
    return [track.read(c.name, 0, c.length) for c in store.contigs]


def _numbers(path, name) -> list[np.ndarray]:
    store = GenomeStore.open(path)
    return [store.track(name).read(c.name, 0, c.length) for c in store.contigs]


def _expected(series: list[np.ndarray], keep: list[float]) -> tuple[list[list[int]], list[float]]:
    """Levels by a loop; the threshold is the last of the kept ones' complement."""
    known = sorted(float(one) for part in series for one in part[:-1] if not np.isnan(one))
    thresholds = [known[len(known) - round(part * len(known)) - 1] for part in keep]
    found = []
    for part in series:
        found.append([len(keep)])
        for value in part[:-1]:
            found[-1].append(sum(bool(value > one) for one in thresholds))
    return found, thresholds


def _run(store, *words: object) -> int:
    return make_patches.main(["--store", str(store), *map(str, words)])


def test_by_conservation(store, capsys):
    assert _run(store, "--track", "conservation", "--keep", 0.3, 0.1) == 0
    series = _numbers(store, "conservation")
    expected, thresholds = _expected(series, [0.3, 0.1])
    found = _boundaries(store)
    assert [one.tolist() for one in found] == expected
    assert all(one.dtype == np.uint8 for one in found)
    assert {0, 1, 2} <= {level for one in expected for level in one}
    told = GenomeStore.open(store).track("boundaries").attributes
    assert told["thresholds"] == thresholds
    opened = [sum(level > i for one in expected for level in one) for i in (0, 1)]
    assert told["chunks"] == opened
    out = capsys.readouterr().out
    for kept, chunks in ((opened[0] / 393, opened[0]), (opened[1] / 393, opened[1])):
        assert f"{kept:.2%}, {chunks:,} chunks" in out
    assert f"{1 - opened[1] / opened[0]:.3f}" in out


def test_by_entropy(store, model, capsys):
    words = ("--entropy", model, "--length", LENGTH, "--keep", 0.4)
    assert _run(store, *words) == 0
    dense = small_model(small_config("SL"))
    opened = GenomeStore.open(store)
    series = []
    for contig in opened.contigs:
        bases = opened.read(contig.name, 0, contig.length)
        part = np.full(contig.length, np.nan)
        for t in range(contig.length):
            if bases[t] == ord("N"):
                continue
            begin = 0
            while t >= begin + LENGTH:
                begin += LENGTH + 1 - CONTEXT
            prefix = torch.from_numpy(bases[begin : t + 1].astype(np.int64))
            with torch.no_grad():
                p = torch.softmax(dense(prefix[None]).logits[0, -1], -1)
            part[t] = -float((p * p.log()).sum())
        series.append(part)
    expected, (threshold,) = _expected(series, [0.4])
    found = _boundaries(store)
    near = sum(int((abs(part - threshold) < 1e-5).sum()) for part in series)
    different = sum(int((a != np.array(b)).sum()) for a, b in zip(found, expected, strict=True))
    assert different <= near <= 2
    for bases, levels in zip(
        (opened.read(c.name, 0, c.length) for c in opened.contigs), found, strict=True
    ):
        assert not levels[1:][bases[:-1] == ord("N")].any()
    assert "nats" in capsys.readouterr().out
    told = opened.group["tracks/boundaries"].attrs
    assert (told["length"], told["context"], told["rule"]) == (LENGTH, CONTEXT, "global")
    weights = told["model"]
    assert isinstance(weights, dict)
    assert list(weights) == ["model.safetensors"]
    before = found
    assert _run(store, *words, "--overwrite", "--rule", "monotonic") == 0
    rises = [np.diff(part, prepend=np.nan) for part in series]
    after = _boundaries(store)
    expected, (threshold,) = _expected(rises, [0.4])
    near = sum(int((abs(part - threshold) < 1e-5).sum()) for part in rises)
    different = sum(int((a != np.array(b)).sum()) for a, b in zip(after, expected, strict=True))
    assert different <= near <= 2
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_a_threshold_of_ones_own(store):
    assert _run(store, "--track", "conservation", "--threshold", 0.5) == 0
    for series, found in zip(_numbers(store, "conservation"), _boundaries(store), strict=True):
        assert found.tolist() == [1, *(int(one > 0.5) for one in series[:-1])]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--track", "phylop"], "has no track 'phylop'; it has"),
        (["--track", "marks"], "the track 'marks' holds bool and cannot be compared"),
        (["--track", "flat"], "no base exceeds the threshold 0, so no chunk opens"),
        (["--track", "flat", "--keep", 0.5, 0.2], "two levels have the threshold 0, for many"),
        (["--track", "conservation", "--keep", 1], "--keep 1.0 is not in (0, 1)"),
        (["--track", "conservation", "--keep", 0.1, 0.3], "--keep 0.1 0.3: the stage inside keeps"),
        (["--track", "conservation", "--threshold", 2, 2], "--threshold 2.0 2.0: give rising"),
        (["--track", "conservation", "--threshold", "nan"], "--threshold takes 1 to 255 finite"),
        (["--track", "conservation", "--rule", "local"], "--rule local is unknown; use global or"),
        (["--track", "conservation", "--length", 64], "--length and --context are of the model"),
        (["--entropy", "none"], "none: no complete checkpoint there"),
        (["--entropy", "MODEL"], "does not tell the length that it was trained on; give --length"),
        (["--entropy", "MODEL", "--length", 8, "--context", 9], "--context 9 does not lie within"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(store, model, capsys, words, sentence):
    names = sorted(path.name for path in store.parent.iterdir())
    assert _run(store, *(model if word == "MODEL" else word for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert len(error.strip().splitlines()) == 1
    assert "boundaries" not in GenomeStore.open(store).tracks
    assert sorted(path.name for path in store.parent.iterdir()) == names


def test_models_that_cannot_be_asked(store, tmp_path, capsys):
    chosen = small_config("S(L)S", merger="precomputed", window=16)
    for config, words in (
        (chosen, "reads its own chunks from a track"),
        (small_config("H"), "--length 252 exceeds the model's max_sequence_length 251"),
        (small_config("S", causal=False), "the entropy of the next byte needs a causal model"),
    ):
        small_model(config).float().save_pretrained(tmp_path / "asked")
        assert _run(store, "--entropy", tmp_path / "asked", "--length", 252) == 2
        assert words in capsys.readouterr().err


def test_the_model_is_told_the_type_of_the_store(store, tmp_path):
    """Weights alike but for the vector of a type that is not the default."""
    found = []
    for scale in (0.0, 3.0):
        told = small_model(small_config("SL", type_embedding="protein")).float()
        assert told.types is not None
        with torch.no_grad():
            told.types.weight[0] *= scale
        told.save_pretrained(tmp_path / "typed")
        words = ("--entropy", tmp_path / "typed", "--length", LENGTH, "--overwrite")
        assert _run(store, *words) == 0
        found.append(np.concatenate(_boundaries(store)))
    assert (found[0] != found[1]).any()


def test_a_track_that_exists_is_kept(store, capsys):
    assert _run(store, "--track", "conservation") == 0
    before = _boundaries(store)
    assert _run(store, "--track", "conservation", "--keep", 0.1) == 2
    assert "has a track 'boundaries' already; pass --overwrite" in capsys.readouterr().err
    assert all((a == b).all() for a, b in zip(before, _boundaries(store), strict=True))
    assert _run(store, "--track", "conservation", "--keep", 0.1, "--overwrite") == 0
    assert any((a != b).any() for a, b in zip(before, _boundaries(store), strict=True))
