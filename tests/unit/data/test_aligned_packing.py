"""Packing for merged stages: documents begin at multiples, against a string laid by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from megatron_hyena.config.merging import merging_multiple
from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.data.alphabet import PAD
from megatron_hyena.data.batch import stacked_batch
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.store import Contig, GenomeStore
from megatron_hyena.data.tracks import Values
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT
from tests.oracles.window_order import laid_runs, laid_windows

COMPLEMENTED = bytes.maketrans(b"ACGT", b"TGCA")
LENGTHS = (205, 1, 20, 16, 95, 1, 33, 60, 7, 150, 3, 32)
NAMES = ("type", "conservation", "marks")


def _by_contig(found: list[Values]) -> Callable[[Contig], Values]:
    named = {f"c{i}": one for i, one in enumerate(found)}
    return lambda contig: named[contig.name]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, random_contigs):
    """Shards of contigs with two tracks; the contigs; their values by track."""
    folder = tmp_path_factory.mktemp("aligned")
    contigs = random_contigs(*LENGTHS)
    draw = np.random.default_rng(4)
    values: dict[str, list[Values]] = {
        "conservation": [draw.normal(size=n).astype(np.float32) for n in LENGTHS],
        "marks": [draw.integers(1, 4, n).astype(np.uint8) for n in LENGTHS],
    }
    (folder / "a.fa").write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(contigs)))
    store = write_store(folder / "genome.zarr", [folder / "a.fa"])
    for name, found in values.items():
        add_track(GenomeStore.open(store.path), name, _by_contig(found), {})
    settings = ShardSettings(SplitRule(0, 0), 60, 120, tracks=tuple(values))
    write_shards(GenomeStore.open(store.path), folder / "shards", settings)
    return folder / "shards" / "train", contigs, values


def _laid(contigs, values, align, seed, epoch, both_strands):
    """The string of an epoch, a position at a time: (byte, document, conservation, mark)."""
    string = []
    for number, turned in laid_runs(len(contigs), seed, epoch):
        text, beside = contigs[number], [values[name][number] for name in NAMES[1:]]
        if both_strands and turned:
            text, beside = text[::-1].translate(COMPLEMENTED), [one[::-1] for one in beside]
        string += [(*parts, number) for parts in zip(text, *beside, strict=True)]
        while len(string) % align:
            string.append((PAD, np.nan, 0, number))
    return string


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize(("align", "length"), [(1, 20), (4, 20), (16, 32), (32, 32), (16, 128)])
def test_windows_are_those_of_the_padded_string(corpus, align, length, both_strands):
    folder, contigs, values = corpus
    stream = PackedStream(
        folder,
        length,
        seed=5,
        augment_reverse_complement=both_strands,
        tracks=NAMES,
        align=align,
    )
    phases, padded = set(), 0
    for epoch in range(12):
        string = _laid(contigs, values, align, 5, epoch, both_strands)
        cuts = laid_windows(string, length, 5, epoch, None, align)
        n = len(cuts)
        assert stream.windows_per_epoch == n
        phases.add(stream._epoch(epoch).phase)
        for index, cut in enumerate(cuts):
            window = stream.window(epoch * n + index)
            shown = [one for one in cut if one is not None]
            shown += [(PAD, np.nan, 0, shown[-1][3])] * (len(cut) - len(shown))
            bases, conservation, marks, numbers = (list(one) for one in zip(*shown, strict=True))
            assert window.bases.tolist() == bases
            assert window.documents is not None
            assert window.documents.tolist() == numbers
            np.testing.assert_array_equal(
                window.tracks["conservation"], np.array(conservation, np.float32)
            )
            assert window.tracks["marks"].tolist() == marks
            assert window.tracks["type"].tolist() == [0] * (length + 1)
            changes = np.flatnonzero(np.diff(window.documents)) + 1
            assert all(place % align == 0 for place in changes)
            assert window.bases[0] != PAD
            padded += bases.count(PAD)
    assert (len(phases) > 1) == (length > align)
    assert padded > 0


@pytest.mark.parametrize("align", [4, 16, 32])
def test_every_base_is_shown_once(corpus, align):
    folder, contigs, _ = corpus
    stream = PackedStream(folder, 32, seed=1, tracks=NAMES, align=align)
    for epoch in range(10):
        drawn, n = stream._epoch(epoch), stream.windows_per_epoch
        inputs = [stream.window(epoch * n + i) for i in range(n)]
        in_order = [inputs[i] for i in np.argsort(drawn.order(np.arange(n)))]
        shown = [
            np.concatenate([w.bases[:-1][w.documents[:-1] == number] for w in in_order])
            for number in range(len(LENGTHS))
        ]
        assert [found[found != PAD].tobytes() for found in shown] == contigs


@pytest.mark.parametrize("pattern", ["S(SL)S", "S(S(L)0.5)S"])
def test_a_merged_model_takes_the_batches(corpus, pattern):
    """Each document's loss is that of the document alone; padding has no weight."""
    config = HyenaGLTConfig(
        pattern=pattern,
        hidden_size=16,
        num_heads=2,
        window=16,
        merge_ratio=0.5,
        merger="static",
    )
    multiple = merging_multiple(config)
    length = 2 * multiple
    model = HyenaGLT(config).double()
    stream = PackedStream(corpus[0], length, seed=2, tracks=NAMES, align=multiple)
    batch = stacked_batch([stream.window(i) for i in range(8)])
    assert (batch.input_ids == PAD).any()
    assert not batch.weights[(batch.targets == PAD) | (batch.input_ids == PAD)].any()
    nats = model.token_losses(batch.input_ids, batch.targets, batch.documents)
    assert batch.documents is not None
    several = 0
    for row, documents in enumerate(batch.documents):
        several += len(documents.unique()) > 1
        for number in documents.unique():
            here = (row, documents == number)
            alone = model.token_losses(batch.input_ids[here][None], batch.targets[here][None])[0]
            scored = batch.weights[here] > 0
            torch.testing.assert_close(nats[here][scored], alone[scored], rtol=0, atol=1e-12)
    assert several
    piece = batch.in_pieces(multiple)
    assert model.token_losses(piece.input_ids, piece.targets, piece.documents).isfinite().all()
    loose = PackedStream(corpus[0], length, seed=2)
    packed = stacked_batch([loose.window(i) for i in range(8)])
    with pytest.raises(UserError, match=f"documents begin at multiples of {multiple}"):
        model.token_losses(packed.input_ids, packed.targets, packed.documents)


def test_a_length_that_the_multiple_does_not_divide_is_refused(corpus):
    with pytest.raises(UserError, match=r"data\.sequence_length = 40 is not a multiple of 16"):
        PackedStream(corpus[0], 40, seed=0, align=16)
    with pytest.raises(ValueError, match="align"):
        PackedStream(corpus[0], 40, seed=0, align=0)
