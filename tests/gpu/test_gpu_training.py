"""The training program on GPUs, with NCCL: the loss falls, resuming goes on, layouts agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import make_shards, prepare_genome

ROOT = Path(__file__).parents[2]
GENOME = ROOT / "examples" / "chlamydia" / "ct.fasta.gz"
DEVICES = torch.cuda.device_count()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICES == 0, reason="needs a CUDA device"),
]
two_devices = pytest.mark.skipif(DEVICES < 2, reason="needs two CUDA devices")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    assert prepare_genome.main(["--fasta", str(GENOME), "--output", str(folder)]) == 0
    store, output = str(folder / "genome.zarr"), str(folder / "shards")
    assert make_shards.main(["--store", store, "--output", output]) == 0
    return folder / "shards"


def train(shards: Path, folder: Path, ranks: int, *overrides: str) -> list[dict[str, float]]:
    """Run `pretrain.train` for 30 steps; the logged records."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "pretrain.train"]
    command += ["configs/run/quickstart.yaml", f"run.output_dir={folder}"]
    command += [f"data.{split}={shards / split}" for split in ("train", "valid")]
    command += ["train.steps=30", "train.valid_every=0", "optim.warmup_steps=5", "log.every=1"]
    command += ["train.micro_batch_size=4", f"parallel.tensor={ranks}"]
    command += [f"parallel.sequence={str(ranks > 1).lower()}", *overrides]
    subprocess.run(command, check=True, cwd=ROOT, timeout=500)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls_and_a_stopped_run_goes_on(
    shards: Path, tmp_path: Path, precision: str
) -> None:
    chosen = f"train.precision={precision}"
    whole = train(shards, tmp_path / "whole", 1, chosen)
    assert whole[-1]["loss"] < whole[0]["loss"] - 1.0
    train(shards, tmp_path / "parts", 1, chosen, "train.stop_after=15")
    parts = train(shards, tmp_path / "parts", 1, chosen)
    assert [r["step"] for r in parts] == list(range(1, 31))
    tolerance = 1e-3 if precision == "fp32" else 1e-2
    assert parts[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=tolerance)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_stages(shards: Path, tmp_path: Path, stage: int) -> None:
    one = train(shards, tmp_path / "one", 1)
    other = train(shards, tmp_path / "other", 1, f"parallel.zero_stage={stage}")
    assert other[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=1e-3)


@two_devices
def test_two_ranks_share_the_layers(shards: Path, tmp_path: Path) -> None:
    one = train(shards, tmp_path / "one", 1)
    two = train(shards, tmp_path / "two", 2)
    for alone, shared in zip(one, two, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-2)
