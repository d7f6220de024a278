"""What savanna trains, converted, run by Evo 2's inference program: the two ends of our formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.oracles.savanna_folder import Model, draw, logits, write_folder
from tests.peers.process import run_in_peer
from tools.convert_checkpoint import main

IDS = np.random.default_rng(1).integers(0, 512, (1, 150))
pytestmark = pytest.mark.smoke
MODEL = Model(vocabulary=512, taps=128, modes=16, ranks=2)


def test_vortex_computes_what_savanna_trained(tmp_path: Path) -> None:
    tensors = draw(MODEL)
    folder = write_folder(tmp_path / "trained", MODEL, tensors, stage=3, data=2)
    file = tmp_path / "converted.pt"
    assert main(["--from", str(folder), "--to", "vortex", "--output", str(file)]) == 0
    settings = {"cases": "vtx_cases", "files": {"it": str(file)}, "made": {}, "prompt": 140}
    found = run_in_peer("converted_cases", tmp_path, settings, {"ids": IDS})
    expected = logits(MODEL, tensors, IDS[0])
    assert found["it.unknown"].tolist() == []
    difference = np.abs(found["it.logits"][0] - expected).max()
    assert difference <= 1e-4 * np.abs(expected).max()
