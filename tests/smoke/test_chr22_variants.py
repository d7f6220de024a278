"""Thousands of human variants on a chromosome taken from an alignment.

Needs two Debian packages (83 MB) or a folder with their files; see `tests.oracles.debian_files`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from megatron_hyena.errors import UserError
from megatron_hyena.variants import ScoreOptions, score_variants
from tests.oracles.chr22 import CONTIG, Chr22, kind_of, read_chr22, sample_of
from tests.oracles.drawing import small_config, small_model
from tests.oracles.merged_models import dna, lively_model, merged_config
from tests.oracles.variant_ways import PADDINGS, Ways, furthest, plainly
from tools.prepare_genome import main as prepare_genome

pq = pytest.importorskip("pyarrow.parquet")
pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.parallel]


@pytest.fixture(scope="module")
def chromosome(tmp_path_factory: pytest.TempPathFactory) -> Chr22:
    try:
        return read_chr22(tmp_path_factory.mktemp("chr22"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def store(chromosome: Chr22, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the alignment by the command."""
    folder = tmp_path_factory.mktemp("store")
    words = ["--fasta", str(chromosome.alignment), "--maf-reference", "Hsap"]
    assert prepare_genome([*words, "--output", str(folder)]) == 0
    return folder / "genome.zarr"


def test_every_ref_is_that_of_the_chromosome(chromosome, store, tmp_path) -> None:
    assert chromosome.covered == 21_629_102
    assert (len(chromosome.records), chromosome.all_records) == (6890, 10_376)
    assert chromosome.matching == 6890
    vcf = chromosome.write_vcf(tmp_path / "a.vcf")
    model = small_model(small_config("S"))
    options = ScoreOptions(window=128, max_mismatch=0)
    report = score_variants(model.float(), vcf, store, tmp_path / "a.parquet", options)
    assert report.survey.records == 6890 and report.survey.mismatched == 0
    assert report.survey.contigs == (CONTIG,)
    kinds = Counter(kind_of(record).split(",")[0] for record in chromosome.records)
    assert kinds["single base"] == 6653
    assert report.statuses["scored"] + report.statuses["too_long"] == 6890
    assert report.statuses["too_long"] < 5


@pytest.mark.parametrize("name", ["SMLW", "S(M)S"])
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-4)])
def test_a_score_is_the_same_in_every_way(name, dtype, bound, chromosome, store, tmp_path) -> None:
    merged = lively_model(merged_config("S(M)S"), dna(2, 64)) if "(" in name else None
    model = (merged or small_model(small_config(name))).eval().float()  # as files hold weights
    sample = sample_of(chromosome, 32, seed=1)
    ways = Ways(chromosome, store, sample, model, 256, dtype, tmp_path)
    wanted = ways.wanted()
    assert sum(row["status"] == "scored" for row in wanted) == 32
    assert len({round(row["delta_ll"], 6) for row in wanted}) > 24
    for way, rows in ways.all():
        assert furthest(rows, wanted) < bound, way
    for padding in PADDINGS:
        compared, difference = plainly(ways, wanted, padding)
        assert compared > 10 and difference < bound, padding
