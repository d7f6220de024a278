"""A million bases in little memory, with the states of the pass over all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from megatron_hyena import HyenaGLT
from megatron_hyena.config import load_config
from tests.oracles.small_corpus import draw
from tests.oracles.variants import write_fasta

BASES, GIBIBYTE = 1_000_000, 1 << 20
ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
from tools.embed import main
code = main(sys.argv[1:])
print("KiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.smoke
@pytest.mark.slow
def test_a_million_bases_need_less_than_two_gibibytes(tmp_path: Path) -> None:
    """The architecture that `make quickstart` trains."""
    config = load_config(ROOT / "configs/model/tiny.yaml").model
    assert (config.pattern, config.hidden_size) == ("SMLW", 128)
    model = HyenaGLT(config, seed=1).eval()
    model.save_pretrained(tmp_path / "model")
    letters = draw(np.random.default_rng(0), BASES)
    fasta = write_fasta(tmp_path / "a.fa", {"c": letters})
    named = ("--from", tmp_path / "model", "--fasta", fasta, "--output", tmp_path / "e.zarr")
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, named)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert int(told.split("KiB")[1]) < 2 * GIBIBYTE
    rows = np.asarray(zarr.open_group(str(tmp_path / "e.zarr"), mode="r")["embeddings"])
    ids = torch.from_numpy(np.frombuffer(letters, np.uint8).astype(np.int64))[None]
    with torch.no_grad():
        whole = model.hidden(ids)[:, 0].numpy()
    assert np.abs(rows - whole).max() < 1e-5
