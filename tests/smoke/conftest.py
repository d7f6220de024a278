"""Shards of the shipped genome, cut once for all programs that train on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from tests.smoke.program import ROOT


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train`, `valid` and `test`."""
    folder = tmp_path_factory.mktemp("corpus")
    store = write_store(folder / "genome.zarr", [ROOT / "examples/chlamydia/ct.fasta.gz"], [])
    write_shards(store, folder / "shards", ShardSettings(rule=SplitRule(gap=4096)))
    return folder / "shards"
