"""Memory of converting a model of 405 MB for transformers and to and from savanna."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_hyena import HyenaGLT, HyenaGLTConfig

WAYS = {
    "to transformers": (["--from", "model", "--to", "hf", "--output", "hf"], 40),
    "to savanna": (
        [
            "--from",
            "model",
            "--to",
            "savanna",
            "--output",
            "s",
            "--zero-stage",
            "3",
            "--data-ranks",
            "2",
        ],
        80,
    ),
    "from savanna": (["--from", "s", "--to", "native", "--output", "back"], 160),
}
"""Arguments, and the MiB that the large model may take beyond the small one."""
PEAK = """
import os, re, sys
from pathlib import Path
from tools.convert_checkpoint import main
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
for name in ("small", "large"):
    before = peak()
    os.chdir(name)
    assert main(sys.argv[1:]) == 0
    os.chdir("..")
print("MiB", peak() - before)
"""


@pytest.mark.slow
def test_memory_of_exports_stays_far_below_the_model(tmp_path: Path) -> None:
    large = {"pattern": "[SMLA]4", "hidden_size": 768, "num_heads": 12, "ffn_hidden_size": 2048}
    for name, fields in (("small", {"hidden_size": 32}), ("large", large)):
        model = HyenaGLT(HyenaGLTConfig(**fields))
        model.save_pretrained(tmp_path / name / "model")
    assert sum(p.numel() * 4 for p in model.parameters()) > 400e6
    for name, (arguments, most) in WAYS.items():
        result = subprocess.run(
            [sys.executable, "-c", PEAK, *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        grown = re.search(r"MiB (\S+)", result.stdout)
        assert grown and float(grown[1]) < most, (name, result.stdout)
