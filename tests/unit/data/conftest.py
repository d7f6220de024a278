"""The shipped genome, prepared once for all tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_hyena.data.prepare import write_store
from megatron_hyena.data.shards import ShardSettings, write_shards
from megatron_hyena.data.splits import SplitRule
from megatron_hyena.data.store import GenomeStore

CHLAMYDIA = Path(__file__).parents[3] / "examples" / "chlamydia"


@pytest.fixture(scope="session")
def chlamydia_files():
    return CHLAMYDIA / "ct.fasta.gz", CHLAMYDIA / "ct.gbk.gz"


@pytest.fixture(scope="session")
def chlamydia_store(tmp_path_factory, chlamydia_files) -> GenomeStore:
    fasta, genbank = chlamydia_files
    return write_store(tmp_path_factory.mktemp("corpus") / "genome.zarr", [fasta], [genbank])


@pytest.fixture(scope="session")
def chlamydia_shards(tmp_path_factory, chlamydia_store) -> Path:
    """Several shards per split, so that runs cross them."""
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    settings = ShardSettings(
        rule=SplitRule(gap=4096), piece_length=30_000, shard_size=200_000, features=True
    )
    write_shards(chlamydia_store, folder, settings)
    return folder
