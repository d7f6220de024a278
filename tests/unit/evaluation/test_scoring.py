"""Bits along held-out runs against one brute-force pass per base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.corpus.tracks import add_track
from megatron_hyena.data.alphabet import SequenceType
from megatron_hyena.data.store import GenomeStore
from megatron_hyena.data.windows import SequentialWindows
from megatron_hyena.evaluation.scoring import mean_bits, score_runs

LENGTH, CONTEXT = 40, 15


def test_every_base_is_scored_once_with_its_context(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequence = rng.choice(np.frombuffer(b"ACGTacgtNR", dtype=np.uint8), 300).tobytes().decode()
    (tmp_path / "g.fa").write_text(f">one\n{sequence}\n")
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "g.fa"])
    rule = SplitRule(valid_fraction=0.0, test_fraction=0.0, gap=0)
    write_shards(store, tmp_path / "shards", ShardSettings(rule=rule, piece_length=70))
    model = HyenaGLT(HyenaGLTConfig(pattern="SL", hidden_size=16), seed=1).double().eval()
    windows = SequentialWindows(tmp_path / "shards" / "train", LENGTH, CONTEXT)

    (bits,) = score_runs(model.token_losses, windows, batch_size=3)

    assert len(bits) == 300
    data = np.frombuffer(sequence.encode(), dtype=np.uint8)
    known = np.isin(data, np.frombuffer(b"ACGTacgt", dtype=np.uint8))
    assert np.array_equal(np.isfinite(bits), known & (np.arange(300) > 0))
    stride = LENGTH + 1 - CONTEXT
    for position in np.flatnonzero(known[1:])[::7] + 1:
        # The one window in which this base is scored begins at a multiple of the stride.
        number = 0 if position <= LENGTH else -(-(position - LENGTH) // stride)
        start = number * stride
        assert position - start >= CONTEXT or start == 0
        ids = torch.from_numpy(data[start:position].astype(np.int64))[None]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        expected = -torch.log_softmax(logits, 0)[int(data[position])].item() / math.log(2)
        assert abs(bits[position] - expected) < 1e-9
    mean, count = mean_bits([bits])
    assert count == np.isfinite(bits).sum()
    assert abs(mean - bits[np.isfinite(bits)].mean()) < 1e-12


def test_the_model_is_given_the_tracks_of_the_windows(tmp_path: Path) -> None:
    """A model that answers with the track: what comes back is the track, a base later."""
    sequence = "ACGU" * 25 + "acgu" * 25
    (tmp_path / "r.fa").write_text(f">one\n{sequence}\n")
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "r.fa"], kind=SequenceType.RNA)
    values = np.random.default_rng(0).random(200).astype(np.float32)
    add_track(store, "conservation", lambda contig: values, {})
    settings = ShardSettings(SplitRule(0.0, 0.0, 0), 70, tracks=("conservation",))
    write_shards(GenomeStore.open(store.path), tmp_path / "shards", settings)

    def answer(ids: Tensor, targets: Tensor, tracks: Mapping[str, Tensor]) -> Tensor:
        assert ids.shape == targets.shape == tracks["conservation"].shape
        return tracks["conservation"]

    windows = SequentialWindows(
        tmp_path / "shards" / "train", LENGTH, CONTEXT, tracks=["conservation"]
    )
    (bits,) = score_runs(answer, windows, batch_size=3)
    assert np.isnan(bits[0])
    np.testing.assert_allclose(bits[1:], values[:-1].astype(np.float64) / math.log(2), rtol=1e-12)
