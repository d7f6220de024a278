"""Batches of packed sequences: documents, weights at their edges, ranks, resuming, the run."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena.data.alphabet import PAD
from megatron_hyena.data.batch import Batch, make_batch
from megatron_hyena.data.loader import BatchIterator, micro_batches
from megatron_hyena.data.packing import PackedStream
from megatron_hyena.data.windows import WindowStream
from megatron_hyena.errors import UserError


def test_weights_are_zero_where_the_next_document_begins():
    bases = np.frombuffer(b"AACCCGNGT", np.uint8)
    documents = np.array([7, 7, 2, 2, 2, 9, 9, 9, 4], dtype=np.int64)
    batch = make_batch([bases, bases], documents=[documents, np.zeros(9, dtype=np.int64)])
    assert batch.weights.dtype == torch.float32
    assert batch.weights[0].tolist() == [1, 0, 1, 1, 0, 0, 1, 0]
    assert batch.weights[1].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert batch.documents is not None
    assert batch.documents.dtype == torch.int64
    assert batch.documents.is_contiguous()
    assert batch.documents[0].tolist() == documents[:-1].tolist()
    scale = np.full(8, 0.5, dtype=np.float32)
    scaled = make_batch([bases], [scale], [documents])
    assert scaled.weights[0].tolist() == [0.5, 0, 0.5, 0.5, 0, 0, 0.5, 0]


def test_batches_carry_documents_to_the_device(shards_of, random_contigs):
    stream = PackedStream(shards_of(random_contigs(200, 3)), 20, seed=2)
    (batch,) = micro_batches(stream, 0, 4, 4, 0, 1)
    assert batch.documents is not None
    assert batch.documents.shape == batch.input_ids.shape == (4, 20)
    moved = batch.to("meta")
    assert moved.documents is not None
    assert {t.device.type for t in (moved.input_ids, moved.weights, moved.documents)} == {"meta"}
    (plain,) = micro_batches(WindowStream(stream.source, 20, seed=2), 0, 4, 4, 0, 1)
    assert plain.documents is None
    assert plain.to("meta").documents is None


def test_weights_of_training_batches_at_every_kind_of_boundary(shards_of, random_contigs):
    contigs = random_contigs(*(23, 1, 40, 7, 2) * 8, letters=b"ACGTN")
    stream = PackedStream(shards_of(contigs), 20, seed=8, augment_reverse_complement=True)
    boundaries = set()
    for step in range(3 * stream.windows_per_epoch):
        (batch,) = micro_batches(stream, step, 1, 1, 0, 1)
        window = stream.window(step)
        assert window.documents is not None
        for j in range(20):
            crosses = window.documents[j] != window.documents[j + 1]
            known = window.bases[j + 1] not in (ord("N"), PAD)
            assert batch.weights[0, j] == float(known and not crosses)
            if crosses:
                boundaries.add(j)
    assert boundaries >= {0, 19}


def _joined(batches: list[Batch]) -> torch.Tensor:
    """[rows, 4, L] everything that the batches hold."""
    parts = []
    for batch in batches:
        assert batch.documents is not None
        tensors = (batch.input_ids, batch.targets, batch.weights.long(), batch.documents)
        parts.append(torch.stack(tensors, dim=1))
    return torch.cat(parts)


@pytest.fixture(scope="module")
def stream(shards_of, random_contigs) -> PackedStream:
    folder = shards_of(random_contigs(400, 3, 80, 25, 1, 190))
    return PackedStream(folder, 20, seed=6, augment_reverse_complement=True)


@pytest.mark.parametrize(("micro", "ranks"), [(12, 1), (2, 2), (1, 4), (4, 3)])
def test_ranks_together_see_the_same_rows(stream, micro, ranks):
    for step in (0, 7, 30):
        whole = _joined(micro_batches(stream, step, 12, 12, 0, 1))
        shares = [micro_batches(stream, step, 12, micro, rank, ranks) for rank in range(ranks)]
        assert torch.equal(torch.cat([_joined(share) for share in shares]), whole)


def test_iterator_resumes_at_any_step(stream):
    sizes: dict[str, Any] = {"global_batch_size": 6, "micro_batch_size": 2}
    with BatchIterator(stream, 0, stop_step=20, **sizes) as batches:
        straight = {step: _joined(share) for step, share in batches}
    for start in (0, 1, 11, 19):
        with BatchIterator(stream, start, **sizes) as batches:
            taken = {step: _joined(share) for step, share in islice(batches, 20 - start)}
        assert list(taken) == list(range(start, 20))
        assert all(torch.equal(rows, straight[step]) for step, rows in taken.items())


def test_the_run_packs_training_but_not_validation(chlamydia_shards):
    from megatron_hyena.config import load_config
    from pretrain.data import open_data

    places = [f"data.{name}={chlamydia_shards / name}" for name in ("train", "valid")]
    plain = open_data(load_config(None, places))
    packed = open_data(load_config(None, [*places, "data.pack=true"]))
    assert type(plain.train) is WindowStream
    assert type(packed.train) is PackedStream
    assert packed.train.augment_reverse_complement
    assert plain.valid is not None
    assert packed.valid is not None
    assert len(packed.valid) == len(plain.valid) > 0
    for (ours, ours_weights), (theirs, weights) in zip(packed.valid, plain.valid, strict=True):
        assert np.array_equal(ours, theirs)
        assert np.array_equal(ours_weights, weights)
    with pytest.raises(UserError, match="fewer than one global batch of 5000"):
        open_data(load_config(None, [*places, "data.pack=true", "train.global_batch_size=5000"]))
