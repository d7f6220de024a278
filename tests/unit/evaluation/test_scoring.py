"""Bits along held-out runs against one brute-force pass per base."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.data.prepare import write_store
from megatron_hyena.data.shards import ShardSettings, write_shards
from megatron_hyena.data.splits import SplitRule
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
