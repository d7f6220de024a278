"""`pretrain.evaluate` on a tiny run: the table, the files, and what it says of bad input."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.format import Manifest, tensor_file, write_manifest
from megatron_hyena.checkpoint.tensors import write_tensors
from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.layers.parameter import cut_of
from pretrain.evaluate import main

GFF = """##gff-version 3
one	.	CDS	19001	19600	.	+	0	ID=a
one	.	CDS	19701	19900	.	-	0	ID=b
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose one checkpoint is an untrained model, and a genome of 20,000 bases."""
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", dtype=np.uint8), 20_000)
    (tmp_path / "g.fa").write_bytes(b">one\n" + bases.tobytes() + b"\n")
    (tmp_path / "g.gff").write_text(GFF)
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "g.fa"], [tmp_path / "g.gff"])
    write_shards(store, tmp_path / "shards", ShardSettings(rule=SplitRule(gap=100)))
    config = HyenaGLTConfig(pattern="SL", hidden_size=16)
    model = HyenaGLT(config)
    folder = tmp_path / "run" / "checkpoints" / "step_00000003"
    folder.mkdir(parents=True)
    name = tensor_file(0, 1)
    size = write_tensors(folder / name, {f"weight/{n}": p for n, p in model.named_parameters()})
    cuts = {n: cut_of(p) for n, p in model.named_parameters()}
    described = {
        n: {"shape": list(c.shape), "dim": c.dim, "blocks": c.blocks} for n, c in cuts.items()
    }
    shards = tmp_path / "shards"
    data = {split: str(shards / split) for split in ("train", "valid", "test")}
    saved = {"data": data | {"sequence_length": 128}}
    write_manifest(folder, Manifest(3, 24, asdict(config), saved, 1, described, {name: size}))
    return tmp_path / "run"


def test_table_report_and_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(run.parent / "genome.zarr")
    assert main([str(run), "--store", store, "--max-order", "3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"uniform +2\.0000", text)
    assert text.count("Markov order") == 4 and text.count("<- best Markov") == 1
    # An untrained model spreads its bets over 256 bytes.
    assert "Hyena-GLT, step 3 LOSES to the best Markov model" in text
    report = json.loads((run / "evaluation.json").read_text())
    assert report["scored_bases"] == 999
    assert 7.5 < report["model"]["bits_per_base"] < 8.5
    assert {p.name for p in (run / "plots").iterdir()} == {"evaluation.png", "position.png"}


def test_a_split_that_is_nowhere_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--test", str(run / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and f"{run / 'nothing'}" in error
    assert not (run / "evaluation.json").exists()


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no complete checkpoint there" in capsys.readouterr().err
