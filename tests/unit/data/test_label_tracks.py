"""Labels of the annotation in batches: against flags painted from the features one by one."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.config import load_config
from megatron_hyena.config.checks import check_layout
from megatron_hyena.corpus.build import Corpus, build
from megatron_hyena.corpus.labels import LEGEND, Label
from megatron_hyena.corpus.options import load_options
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.data.alphabet import PAD, reverse_complement
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.shard_index import ShardIndex
from megatron_hyena.data.shard_reader import open_runs
from megatron_hyena.data.tracks import FEATURES, STRANDED, turned
from megatron_hyena.data.windows import WindowStream, sequential_windows
from megatron_hyena.errors import UserError
from pretrain.data import open_data

LENGTH = 1_042_519


@pytest.fixture(scope="module")
def truth(chlamydia_files) -> np.ndarray:
    """Flags of every base, read from the annotation by another parser."""
    import gzip

    from Bio import SeqIO

    flags = np.zeros(LENGTH, dtype=np.uint8)
    other = {"tRNA": 4, "rRNA": 8, "ncRNA": 16, "tmRNA": 16, "misc_RNA": 16, "gene": 32}
    with gzip.open(chlamydia_files[1], "rt") as file:
        (record,) = SeqIO.parse(file, "genbank")
    for feature in record.features:
        for part in feature.location.parts:
            flag = {1: 1, -1: 2}[part.strand] if feature.type == "CDS" else 0
            flag = flag or other.get(feature.type, 0)
            flags[int(part.start) : int(part.end)] |= np.uint8(flag)
    return flags


@pytest.fixture(scope="module")
def genome(chlamydia_store) -> bytes:
    return chlamydia_store.read("CHLTCG", 0, LENGTH).tobytes()


def swapped(flags: np.ndarray) -> np.ndarray:
    """As the other strand has them: bases backwards, coding sequence of one strand on the other."""
    pairs = {1: 2, 2: 1, 3: 3, 0: 0}
    return np.array([int(f) & ~3 | pairs[int(f) & 3] for f in flags[::-1]], dtype=np.uint8)


def test_an_index_names_the_classes_and_runs_hold_their_flags(chlamydia_shards, truth):
    for split in ("train", "valid", "test"):
        index = ShardIndex.read(chlamydia_shards / split)
        assert index.tracks == {FEATURES: "uint8"}
        assert index.labels == LEGEND
        assert [int(flag) for flag in index.labels] == [1 << bit for bit in range(8)]
        for run in open_runs(chlamydia_shards / split):
            assert run.origin is not None
            assert run.origin.labels == LEGEND
            part = truth[run.start : run.start + run.length]
            np.testing.assert_array_equal(run.read_track(FEATURES, 0, run.length), part)
            assert {1, 2} <= {int(flag) & 3 for flag in np.unique(part)}


@pytest.mark.parametrize("kind", [WindowStream, PackedStream])
def test_labels_turn_round_with_their_bases_and_strands_change_places(
    chlamydia_shards, genome, truth, kind
):
    stream = kind(
        chlamydia_shards / "train", 600, 3, augment_reverse_complement=True, tracks=[FEATURES]
    )
    strands = set()
    for number in range(60):  # over epochs: a packed document has one strand in each
        window = stream.window(number // 10 * stream.windows_per_epoch + number)
        inside = window.bases != PAD
        letters = window.bases[inside]
        forward = genome.find(letters.tobytes())
        start = forward if forward >= 0 else genome.find(reverse_complement(letters).tobytes())
        expected = truth[start : start + len(letters)]
        expected = expected if forward >= 0 else swapped(expected)
        np.testing.assert_array_equal(window.tracks[FEATURES][inside], expected)
        assert not window.tracks[FEATURES][~inside].any()
        strands.add(forward >= 0)
    assert strands == {True, False}


def test_strands_are_the_flags_of_the_legend():
    assert STRANDED == (Label.CDS_PLUS, Label.CDS_MINUS)
    flags = np.arange(256, dtype=np.uint8)
    found = turned(FEATURES, flags)
    np.testing.assert_array_equal(found, swapped(flags))
    np.testing.assert_array_equal(turned(FEATURES, found), flags)


def test_a_run_brings_labels_with_its_batches_and_its_model_does_not_see_them(chlamydia_shards):
    keys = [f"data.{name}={chlamydia_shards / name}" for name in ("train", "valid")]
    config = load_config(None, [*keys, "data.tracks=[features]", "data.sequence_length=256"])
    check_layout(config, 1)
    window = open_data(config).train.window(0)
    assert window.tracks[FEATURES].dtype == np.uint8
    windows = sequential_windows(chlamydia_shards / "valid", 256, 1, tracks=[FEATURES])
    ids = torch.from_numpy(windows.window(2).bases[None].astype(np.int64))
    flags = torch.from_numpy(windows.window(2).tracks[FEATURES][None].copy())
    model = HyenaGLT(HyenaGLTConfig(pattern="S(L)A", hidden_size=16, num_heads=2))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids, tracks={FEATURES: flags}).logits)


def test_shards_without_labels_are_refused_with_the_option_that_writes_them(
    tmp_path, chlamydia_files
):
    store = write_store(tmp_path / "genome.zarr", chlamydia_files[:1])
    write_shards(store, tmp_path / "shards", ShardSettings(SplitRule(0, 0)))
    with pytest.raises(UserError, match=r"'features', which .* lack .*make_shards --features, or"):
        WindowStream(tmp_path / "shards/train", 512, seed=0, tracks=[FEATURES])


@contextmanager
def silent(stage: str, total: int):
    yield lambda size: None


def _corpus(folder: Path, samples: dict[str, str], annotated: set[str]) -> Path:
    """A corpus of samples name → type, each of eight records with a gene where annotated."""
    draw = np.random.default_rng(2)
    rows = ["path\ttype\tannotation"]
    for name, kind in samples.items():
        letters = b"ACGT" if kind == "dna" else b"ACDEFGHIKLMN"
        lines, genes = [], []
        for i in range(8):
            text = draw.choice(np.frombuffer(letters, np.uint8), 400).tobytes().decode()
            lines.append(f">{name}{i}\n{text}\n")
            genes.append(f"{name}{i}\tx\tgene\t{i + 1}\t{10 * i + 90}\t.\t+\t.\tID=g{i}\n")
        (folder / f"{name}.fa").write_text("".join(lines))
        (folder / f"{name}.gff3").write_text("##gff-version 3\n" + "".join(genes))
        rows.append(f"{name}.fa\t{kind}\t{f'{name}.gff3' if name in annotated else ''}")
    (folder / "s.tsv").write_text("\n".join(rows) + "\n")
    keys = [f"inputs.sheet={folder / 's.tsv'}", "splits.by=contig", "shards.features=true"]
    fractions = ["splits.valid_fraction=0.2", "splits.test_fraction=0.2"]
    build(Corpus.open(folder / "corpus", load_options(None, [*keys, *fractions])), silent)
    return folder / "corpus" / "shards"


def test_labels_of_a_corpus_are_of_the_types_that_have_them(tmp_path):
    shards = _corpus(tmp_path, {"a": "dna", "b": "dna", "p": "protein"}, {"a", "b"})
    seen = 0
    for kind, split in itertools.product(("dna", "protein"), ("train", "valid", "test")):
        index = ShardIndex.read(shards / kind / split)
        assert index.tracks == ({FEATURES: "uint8"} if kind == "dna" else {})
        assert bool(index.labels) == (kind == "dna")
        for run in open_runs(shards / kind / split) if kind == "dna" else ():
            number = int(run.contig[-1])
            expected = np.zeros(400, dtype=np.uint8)
            expected[number : 10 * number + 90] = int(Label.GENE)
            np.testing.assert_array_equal(run.read_track(FEATURES, 0, 400), expected)
            seen += 1
    assert seen == 16


def test_a_sample_without_annotation_among_annotated_ones_is_named(tmp_path):
    with pytest.raises(UserError, match="the sample b has no annotation as others of type dna"):
        _corpus(tmp_path, {"a": "dna", "b": "dna"}, {"a"})
