"""Two processes score the variants of one file together, as one does alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.variants import ScoreOptions, score_variants
from tests.oracles.small_corpus import draw
from tests.oracles.variants import Line, write_fasta, write_vcf

pq = pytest.importorskip("pyarrow.parquet")
pytestmark = [pytest.mark.smoke, pytest.mark.parallel]


def test_two_ranks_write_the_table_of_one(tmp_path: Path) -> None:
    genome = {"c": draw(np.random.default_rng(3), 5000)}
    lines: list[Line] = []
    for place in range(0, 5000, 2):
        ref = genome["c"][place : place + 1].decode()
        lines.append(("c", place + 1, ref, "CA"[ref == "C"]))
    vcf, fasta = write_vcf(tmp_path / "a.vcf", lines), write_fasta(tmp_path / "a.fa", genome)
    model = HyenaGLT(HyenaGLTConfig(pattern="SM", hidden_size=16, num_filter_groups=2))
    model.save_pretrained(tmp_path / "model")
    together = tmp_path / "s.parquet"
    named = {"from": tmp_path / "model", "vcf": vcf, "reference": fasta, "window": 24}
    named["output"] = together
    arguments = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tools.score_variants", *arguments],
            env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    alone = tmp_path / "alone.parquet"
    score_variants(tmp_path / "model", vcf, fasta, alone, ScoreOptions(window=24))
    assert pq.read_table(together).equals(pq.read_table(alone))
    assert not (tmp_path / "s.parquet.parts").exists()
