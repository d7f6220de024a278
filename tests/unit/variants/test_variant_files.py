"""What `tools.score_variants` reads and writes: a sentence for each mistake, no work twice."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_hyena import HyenaGLT
from megatron_hyena.errors import UserError
from megatron_hyena.formats.reference import open_reference, other_name
from megatron_hyena.variants import ScoreOptions, score_variants
from tests.oracles.drawing import small_config, small_model
from tests.oracles.small_corpus import draw
from tests.oracles.variants import HEADER, Line, write_fasta, write_vcf
from tools.score_variants import main

pq = pytest.importorskip("pyarrow.parquet")
pysam = pytest.importorskip("pysam")
GENOME = {"chr1": draw(np.random.default_rng(1), 300), "chr2": draw(np.random.default_rng(2), 90)}
OPTIONS = ScoreOptions(window=20, part=4)


def base(contig: str, position: int) -> str:
    return GENOME[contig][position - 1 : position].decode()


def other(contig: str, position: int) -> str:
    return "CA"[base(contig, position) == "C"]


def snv(contig: str, position: int) -> Line:
    return contig, position, base(contig, position), other(contig, position)


LINES = [snv("chr1", 9 * n + 1) for n in range(13)] + [snv("chr2", 40)]


@pytest.fixture(scope="module")
def model() -> HyenaGLT:
    return small_model(small_config("SL")).float()


@pytest.fixture
def files(tmp_path: Path, model: HyenaGLT) -> list[str]:
    """The arguments of the program for a model, 14 variants and their reference."""
    model.save_pretrained(tmp_path / "model")
    vcf = write_vcf(tmp_path / "a.vcf", LINES)
    fasta = write_fasta(tmp_path / "a.fa", GENOME)
    named = ("--from", tmp_path / "model", "--vcf", vcf, "--reference", fasta)
    return [*map(str, named), "--window", "20", "--output", str(tmp_path / "s.parquet")]


def sentence(files: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What is said of a mistake."""
    assert main([*files, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def test_table_and_vcf(files, tmp_path, capsys) -> None:
    assert main([*files, "--vcf-output", str(tmp_path / "s.vcf.gz")]) == 0
    said = capsys.readouterr().out
    assert "REF matches in 14 of 14 records (100.00%)" in said and "14 scored" in said
    table = pq.read_table(tmp_path / "s.parquet")
    about = json.loads(table.schema.metadata[b"megatron_hyena"])
    assert about["window"] == 20 and about["records"] == 14 and about["ref_match_rate"] == 1
    rows = table.to_pylist()
    assert [row["record"] for row in rows] == list(range(1, 15))
    assert not (tmp_path / "s.parquet.parts").exists()
    with pysam.VariantFile(str(tmp_path / "s.vcf.gz")) as scored:
        for row, record in zip(rows, scored, strict=True):
            assert (record.contig, record.pos) == (row["contig"], row["position"])
            assert record.info["DLL"] == pytest.approx((row["delta_ll"],), rel=1e-5)
            assert record.info["DLLF"] == pytest.approx((row["delta_ll_following"],), rel=1e-5)


def test_all_kinds_of_files_give_the_same_table(files, tmp_path, model) -> None:
    from megatron_hyena.corpus.prepare import write_store

    plain, fasta = tmp_path / "a.vcf", tmp_path / "a.fa"
    zipped = tmp_path / "a.vcf.gz"
    with pysam.BGZFile(str(zipped), "wb") as file:
        file.write(plain.read_bytes())
    (tmp_path / "plain.vcf.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pysam.VariantFile(str(plain)) as source:
        for contig, letters in GENOME.items():
            source.header.contigs.add(contig, length=len(letters))
        with pysam.VariantFile(str(tmp_path / "a.bcf"), "wb", header=source.header) as bcf:
            for record in source:
                bcf.write(record)
    (tmp_path / "a.fa.gz").write_bytes(gzip.compress(fasta.read_bytes()))
    write_store(tmp_path / "genome.zarr", [fasta])
    tables = []
    for number, (variants, reference) in enumerate(
        [
            ("a.vcf", "a.fa"),
            ("a.vcf.gz", "a.fa.gz"),
            ("a.bcf", "genome.zarr"),
            ("plain.vcf.gz", "a.fa"),
        ]
    ):
        output, scored = tmp_path / f"{number}.parquet", tmp_path / f"{number}.vcf"
        paths = tmp_path / variants, tmp_path / reference, output
        score_variants(model, *paths, OPTIONS, vcf_output=scored)
        lines = [line for line in scored.read_text().splitlines() if not line.startswith("#")]
        tables.append((pq.read_table(output).to_pylist(), lines))
    assert tables[0] == tables[1] == tables[2] == tables[3]
    assert len(tables[0][1]) == len(LINES)


def test_a_file_that_was_scored_is_scored_anew(files, tmp_path) -> None:
    again = ["--vcf", str(tmp_path / "s.vcf.gz"), "--output", str(tmp_path / "t.parquet")]
    assert main([*files, "--vcf-output", str(tmp_path / "s.vcf.gz"), "--window", "12"]) == 0
    assert main([*files, *again, "--vcf-output", str(tmp_path / "t.bcf")]) == 0
    rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
    with pysam.VariantFile(str(tmp_path / "t.bcf")) as scored:
        found = [record.info["DLL"][0] for record in scored]
    assert found == pytest.approx([row["delta_ll"] for row in rows], rel=1e-5)
    first = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert found != pytest.approx([row["delta_ll"] for row in first], rel=1e-3)


def test_what_cannot_be_scored_is_listed_with_its_reason(tmp_path, model) -> None:
    wrong = other("chr1", 200)
    ref = GENOME["chr1"][9:31].decode()
    lines = [
        ("chr1", 2, base("chr1", 2), "."),
        ("chr1", 3, base("chr1", 3), f"*,<DEL>,{other('chr1', 3)}"),
        ("chr1", 5, base("chr1", 5), "N[chr2:4["),
        ("chr1", 6, base("chr1", 6), "R"),
        ("chr1", 10, ref, ref[0]),
        ("chr1", 40, base("chr1", 40), base("chr1", 40)),
        ("chr1", 200, wrong, base("chr1", 200)),
        ("chr1", 300, base("chr1", 300) + "A", "A"),
    ]
    vcf = write_vcf(tmp_path / "a.vcf", lines)
    vcf.write_text(vcf.read_text().replace("\t.\t.\t.\n", "\t9\tq10\tFOO=1;BAR\n"))  # undeclared
    fasta = write_fasta(tmp_path / "a.fa", GENOME)
    options = ScoreOptions(window=20, max_mismatch=0.25)
    report = score_variants(
        model, vcf, fasta, tmp_path / "s.parquet", options, vcf_output=tmp_path / "s.vcf"
    )
    found = [row["status"] for row in pq.read_table(tmp_path / "s.parquet").to_pylist()]
    skipped = ["missing", "overlapping_deletion", "symbolic", "scored", "breakend", "not_bases"]
    assert found == [*skipped, "too_long", "unchanged", "ref_mismatch", "ref_mismatch"]
    assert report.survey.mismatched == 2 and report.statuses["scored"] == 1
    with pysam.VariantFile(str(tmp_path / "s.vcf")) as scored:
        second = list(scored)[1]
        assert (
            "END" not in second.info
            and second.info["FOO"] == "1"
            and list(second.filter) == ["q10"]
        )
        assert second.info["DLLS"] == ("overlapping_deletion", "symbolic", "scored")
        assert second.info["DLL"][:2] == (None, None) and second.info["DLL"][2] is not None


def test_flanks_end_where_the_contig_does(tmp_path, model) -> None:
    lines = [snv("chr1", 1), snv("chr1", 4), snv("chr1", 150), snv("chr1", 300)]
    vcf, fasta = write_vcf(tmp_path / "a.vcf", lines), write_fasta(tmp_path / "a.fa", GENOME)
    score_variants(model, vcf, fasta, tmp_path / "s.parquet", OPTIONS)
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert [(r["window_start"], r["left"], r["right"]) for r in rows] == [
        *((0, 0, 9), (0, 3, 9), (140, 9, 9), (290, 9, 0))
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([snv("chr1", 9), snv("chr1", 8)], r"record 2 \(chr1:8\) stands behind record 1 \(chr1:9"),
        ([snv("chr1", 9), snv("chr2", 8), snv("chr1", 10)], "record 3 .* comes back to chr1"),
        ([("1", 9, "A", "C")], "record 1 .* no contig '1' but 'chr1'; rename one side"),
        ([("chrX", 9, "A", "C")], "no contig 'chrX'; the nearest of its 2 is 'chr"),
        ([(c, p, alt, ref) for c, p, ref, alt in LINES[:3]], r"REF of 3 of 3 records \(100.0%"),
        ([], "holds no records"),
    ],
)
def test_records_that_do_not_belong_to_the_reference(lines, said, files, tmp_path, capsys) -> None:
    write_vcf(tmp_path / "a.vcf", lines)
    error = sentence(files, capsys)
    assert re.search(said, error), error
    assert not (tmp_path / "s.parquet.parts").exists()


def test_the_first_mismatch_is_named_with_both_bases(files, tmp_path, capsys) -> None:
    wrong = ("chr1", 50, other("chr1", 50), base("chr1", 50))
    write_vcf(tmp_path / "a.vcf", [LINES[0], wrong])
    error = sentence(files, capsys)
    assert f"record 2 (chr1:50), REF {wrong[2]}, where the reference has {wrong[3]}" in error
    assert "--max-mismatch 1.0%" in error and "assembly" in error
    assert main([*files, "--max-mismatch", "0.5"]) == 0


def test_files_that_are_cut_short(files, tmp_path, capsys) -> None:
    vcf = tmp_path / "a.vcf"
    whole = vcf.read_bytes()
    vcf.write_bytes(whole[:-14])
    assert "behind chr1:109" in sentence(files, capsys)
    vcf.write_bytes(gzip.compress(whole * 1)[:-40])
    assert "truncated gzip file" in (said := sentence(files, capsys)) and "chr1:" in said
    with pysam.BGZFile(str(vcf), "wb") as file:
        file.write(whole)
    vcf.write_bytes(vcf.read_bytes()[:-28])
    assert "the last record that is whole is chr2:40" in sentence(files, capsys)
    vcf.write_bytes(whole[: len(HEADER) + 30])
    assert "cut short or damaged behind chr1:1" in sentence(files, capsys)
    vcf.write_text("chr1\t5\n")
    assert "is no VCF or BCF file" in sentence(files, capsys)
    vcf.unlink()
    assert "does not exist" in sentence(files, capsys)


def test_work_goes_on_where_it_was_stopped(files, tmp_path, model, monkeypatch) -> None:
    from megatron_hyena.variants import run

    paths = tmp_path / "a.vcf", tmp_path / "a.fa", tmp_path / "s.parquet"
    score_variants(model, *paths[:2], tmp_path / "wanted.parquet", OPTIONS)
    asked: list[int] = []
    whole = run.rows_of

    def counted(records, *rest):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(records[0].number)
        return whole(records, *rest)

    monkeypatch.setattr(run, "rows_of", counted)
    with pytest.raises(KeyboardInterrupt):
        score_variants(model, *paths, OPTIONS)
    assert asked == [1, 5] and not paths[2].exists()

    def resumed(records, *rest):
        asked.append(records[0].number)
        return whole(records, *rest)

    monkeypatch.setattr(run, "rows_of", resumed)
    with pytest.raises(UserError, match=r"was begun with window = 20, now it is 30"):
        score_variants(model, *paths, ScoreOptions(window=30, part=4))
    score_variants(model, *paths, OPTIONS)
    assert asked == [1, 5, 9, 13]
    found, wanted = (pq.read_table(tmp_path / n) for n in ("s.parquet", "wanted.parquet"))
    assert found.to_pylist() == wanted.to_pylist()
    with pytest.raises(UserError, match=r"s\.parquet exists already; pass --overwrite"):
        score_variants(model, *paths, OPTIONS)
    score_variants(model, *paths, ScoreOptions(window=30, part=4), overwrite=True)
    assert pq.read_table(paths[2]).to_pylist() != wanted.to_pylist()


def test_shards_do_a_part_each_and_the_last_joins_them(tmp_path, model) -> None:
    vcf, fasta = write_vcf(tmp_path / "a.vcf", LINES), write_fasta(tmp_path / "a.fa", GENOME)
    score_variants(model, vcf, fasta, tmp_path / "one.parquet", OPTIONS)
    reports = [
        score_variants(model, vcf, fasta, tmp_path / "s.parquet", OPTIONS, shard=(n, 3))
        for n in (2, 3, 1)
    ]
    assert [report.missing for report in reports] == [3, 2, 0]
    assert [report.output is None for report in reports] == [True, True, False]
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "s")]
    assert tables[0].equals(tables[1], check_metadata=True)


def test_options_that_cannot_be(files, tmp_path, capsys) -> None:
    assert "--window 1" in sentence(files, capsys, "--window", "1")
    assert "give --window" in sentence(files, capsys, "--window", "0")
    assert "--shard '3': give I/N" in sentence(files, capsys, "--shard", "3")
    assert "--shard 3/2" in sentence(files, capsys, "--shard", "3/2")
    assert "use both or forward" in sentence(files, capsys, "--strands", "reverse")
    ending = ("--vcf-output", str(tmp_path / "s.txt"))
    assert "ends in .vcf, .vcf.gz, .bcf" in sentence(files, capsys, *ending)


def test_models_that_cannot_score(tmp_path) -> None:
    vcf, fasta = write_vcf(tmp_path / "a.vcf", LINES), write_fasta(tmp_path / "a.fa", GENOME)

    def refused(pattern: str, said: str, **changes: object) -> None:
        model = small_model(small_config(pattern, **changes))
        with pytest.raises(UserError, match=said):
            score_variants(model, vcf, fasta, tmp_path / "s.parquet", ScoreOptions(window=60))

    refused("S", "needs a causal model", causal=False)
    refused("S(S)S", "reads its chunks from the track", merger="precomputed")
    refused("H", r"--window 60 exceeds .*=40; give --window 41", max_sequence_length=40)


def test_chromosomes_under_their_other_names(tmp_path) -> None:
    assert other_name("7", ["chr1", "chr7"]) == "chr7"
    assert other_name("chr7", ["1", "7"]) == "7"
    assert other_name("MT", ["chrM"]) == "chrM"
    assert other_name("8", ["chr7"]) is None
    reference = open_reference(write_fasta(tmp_path / "a.fa", GENOME))
    assert reference.read("chr2", 3, 9).tobytes() == GENOME["chr2"][3:9]
    with pytest.raises(UserError, match="chr2:80-91 is not inside chr2"):
        reference.read("chr2", 80, 91)
