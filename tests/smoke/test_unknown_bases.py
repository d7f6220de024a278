"""Batches in which every base is N: nothing to learn, and nothing breaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from tests.smoke.program import Program, metrics

pytestmark = pytest.mark.smoke

OVERRIDES = [
    "model.pattern=SL",
    "model.hidden_size=16",
    "data.sequence_length=64",
    "train.global_batch_size=1",
    "train.steps=30",
    "log.every=1",
    "optim.weight_decay=0",
]


def test_a_run_through_a_gap_of_unknown_bases(tmp_path: Path) -> None:
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", dtype=np.uint8), 1000)
    sequence = bases[:500].tobytes() + b"N" * 1500 + bases[500:].tobytes()
    (tmp_path / "gap.fa").write_bytes(b">gap\n" + sequence + b"\n")
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "gap.fa"])
    rule = SplitRule(valid_fraction=0.0, test_fraction=0.0, gap=0)
    write_shards(store, tmp_path / "shards", ShardSettings(rule=rule))
    (tmp_path / "run.yaml").write_text("run: {seed: 1}\n")
    run = tmp_path / "run"
    places = [f"run.output_dir={run}", f"data.train={tmp_path / 'shards' / 'train'}"]
    program = Program(1, [str(tmp_path / "run.yaml"), *OVERRIDES, *places], tmp_path / "log")
    assert program.finish() == [0], program.output()
    records = metrics(run)
    unknown = [int(r["step"]) for r in records if r["loss"] == 0]
    assert unknown, "no batch of N alone: the test shows nothing"
    assert all(records[step - 1]["grad_norm"] == 0 for step in unknown)
    assert all(0 < r["loss"] < 6 for r in records if r["step"] not in unknown)
