"""The shipped genome, prepared once for all tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena.corpus.prepare import write_store
from megatron_hyena.corpus.shards import ShardSettings, write_shards
from megatron_hyena.corpus.splits import SplitRule
from megatron_hyena.data.store import GenomeStore

CHLAMYDIA = Path(__file__).parents[2] / "examples" / "chlamydia"


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


@pytest.fixture(scope="session")
def random_contigs() -> Callable[..., list[bytes]]:
    """`random_contigs(*lengths, letters=b"ACGT")`: the same ones for the same arguments."""

    def draw(*lengths: int, letters: bytes = b"ACGT") -> list[bytes]:
        generator = np.random.default_rng(3)
        choices = np.frombuffer(letters, np.uint8)
        return [generator.choice(choices, n).tobytes() for n in lengths]

    return draw


@pytest.fixture(scope="session")
def shards_of(tmp_path_factory) -> Callable[..., Path]:
    """`shards_of(contigs, piece=50)`: a folder of several shards of these contigs, all train."""

    def write(contigs: list[bytes], piece: int = 50) -> Path:
        folder = tmp_path_factory.mktemp("contigs")
        fasta = folder / "a.fa"
        fasta.write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(contigs)))
        store = write_store(folder / "genome.zarr", [fasta])
        settings = ShardSettings(SplitRule(0, 0), piece_length=piece, shard_size=120)
        write_shards(store, folder / "shards", settings)
        return folder / "shards" / "train"

    return write
