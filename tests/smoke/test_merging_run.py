"""The real program with merged stages: what it logs, and what can be seen of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.observe.plots import plot_training
from tests.smoke.program import Program, metrics
from tools.inspect_merging import main

pytestmark = pytest.mark.smoke

STEPS = 6
FIGURES = {"kept", "wanted", "dropped", "shift", "length_50", "length_95"}
OVERRIDES = [
    "model.pattern=S(L(S)0.5)0.4",
    "model.hidden_size=16",
    "model.window=32",
    "model.slots=24",
    "data.sequence_length=512",
    "train.global_batch_size=2",
    f"train.steps={STEPS}",
    "log.every=1",
]


def test_merging_is_logged_and_can_be_inspected(tmp_path: Path) -> None:
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", dtype=np.uint8), 9000)
    (tmp_path / "g.fa").write_bytes(b">chr\n" + bases.tobytes() + b"\n")
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "g.fa"])
    rule = SplitRule(valid_fraction=0.0, test_fraction=0.0, gap=0)
    write_shards(store, tmp_path / "shards", ShardSettings(rule=rule))
    (tmp_path / "run.yaml").write_text("run: {seed: 1}\n")
    run = tmp_path / "run"
    places = [f"run.output_dir={run}", f"data.train={tmp_path / 'shards' / 'train'}"]
    program = Program(1, [str(tmp_path / "run.yaml"), *OVERRIDES, *places], tmp_path / "log")
    assert program.finish() == [0], program.output()
    _check_figures(run)
    plot_training(run / "metrics.jsonl", tmp_path / "training.png", kept_targets=[0.6, 0.5])

    asked = ["--store", str(tmp_path / "genome.zarr"), "--region", "chr:2,001-4,000"]
    assert main([str(run), *asked, "--output", str(tmp_path / "chunks")]) == 0
    summary = json.loads((tmp_path / "chunks" / "summary.json").read_text())
    assert summary["step"] == STEPS and len(summary["stages"]) == 2
    for stage in summary["stages"]:
        assert 0 < stage["kept"] < 1 and stage["chunks"] > 20
        assert stage["mean_length"] == pytest.approx(2000 / stage["chunks"], rel=0.2)
    assert all((tmp_path / "chunks" / name).stat().st_size for name in summary["files"])


def _check_figures(run: Path) -> None:
    records = metrics(run)
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    expected = {f"merge/{number}/{name}" for number in range(2) for name in FIGURES}
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert expected <= tags and {"train/loss", "train/ratio_loss"} <= tags
    for record in records:
        assert expected | {"ratio_loss"} <= record.keys()
        assert np.isfinite(record["ratio_loss"])
        assert 0 < record["merge/0/kept"] <= 1 and 0 <= record["merge/1/dropped"] <= 1
    kept = [event.value for event in events.Scalars("merge/0/kept")]
    np.testing.assert_allclose(kept, [r["merge/0/kept"] for r in records], rtol=1e-6)
