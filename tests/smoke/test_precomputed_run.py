"""Entropy patches from end to end: a small model, its boundaries, and a run that merges by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.data.store import GenomeStore
from tests.smoke.program import Program, metrics
from tools import make_patches, make_shards

pytestmark = pytest.mark.smoke

SMALL = [
    "model.hidden_size=16",
    "model.num_heads=2",
    "data.sequence_length=64",
    "data.reverse_complement=false",
    "train.global_batch_size=2",
    "train.steps=3",
    "log.every=1",
]
MERGED = [
    "model.pattern=S(SL)S",
    "model.merger=precomputed",
    "model.merge_ratio=0.5",
    "model.window=16",
    "data.tracks=[boundaries]",
    "data.pack=true",
]


def _trained(folder: Path, name: str, *overrides: str) -> list[float]:
    """The losses of a run; it must end well."""
    (folder / "run.yaml").write_text("run: {seed: 1}\n")
    places = [f"run.output_dir={folder / name}", f"data.train={folder / 'shards' / 'train'}"]
    words = [str(folder / "run.yaml"), *SMALL, *places, *overrides]
    program = Program(1, words, folder / f"{name}_log")
    assert program.finish() == [0], program.output()
    return [record["loss"] for record in metrics(folder / name)]


def test_from_a_small_model_to_a_merged_run(tmp_path: Path, capsys) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.choice(np.frombuffer(b"ACGT", np.uint8), n).tobytes() for n in (900, 70, 130)]
    (tmp_path / "a.fa").write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(texts)))
    store = write_store(tmp_path / "genome.zarr", [tmp_path / "a.fa"]).path
    cut = ["--store", str(store), "--output", str(tmp_path / "shards"), "--gap", "0"]
    cut += ["--valid-fraction", "0", "--test-fraction", "0"]
    assert make_shards.main(cut) == 0
    assert len(_trained(tmp_path, "small", "model.pattern=SL")) == 3
    patches = ["--store", str(store), "--entropy", str(tmp_path / "small"), "--keep", "0.4"]
    assert make_patches.main(patches) == 0
    assert "kept" in capsys.readouterr().out
    told = GenomeStore.open(store).track("boundaries").attributes
    assert told["length"] == 64
    assert 0.35 < told["chunks"][0] / 1100 < 0.45  # equal contexts have equal entropies
    assert make_shards.main([*cut, "--track", "boundaries", "--overwrite"]) == 0
    losses = _trained(tmp_path, "merged", *MERGED)
    assert len(losses) == 3
    assert all(0 < loss < 7 for loss in losses)
    # The model reads the track: with a chunk at every base that fits, it computes something else.
    every = ["--store", str(store), "--entropy", str(tmp_path / "small"), "--threshold", "-1"]
    assert make_patches.main([*every, "--overwrite"]) == 0
    assert make_shards.main([*cut, "--track", "boundaries", "--overwrite"]) == 0
    assert _trained(tmp_path, "dense", *MERGED)[0] != losses[0]
