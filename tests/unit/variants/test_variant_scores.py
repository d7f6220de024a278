"""Scores are those of one model call per allele and strand, however they are made."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena.model.hyena_glt import HyenaGLT
from megatron_hyena.variants import ScoreOptions, score_variants
from megatron_hyena.variants.rows import COLUMNS, DELTAS
from tests.oracles.drawing import small_config, small_model
from tests.oracles.merged_models import dna, lively_model, merged_config
from tests.oracles.small_corpus import draw, reverse
from tests.oracles.variants import Line, mirrored, score, write_fasta, write_vcf

pq = pytest.importorskip("pyarrow.parquet")
WINDOW = 40
NUMBERS = [name for name in COLUMNS if name not in ("id", "ref", "alt", "contig", "status")]


def contigs() -> dict[str, bytes]:
    """A plain one, one full of repeats, lower case and N, and a short one."""
    generator = np.random.default_rng(4)
    repeats = b"ACACACACACACACAGTTTTTTTTTTTTGAA" + draw(generator, 40).lower() + b"NNNacgtnnACG"
    return {"plain": draw(generator, 200), "repeats": repeats, "short": b"GATTACA"}


def variants() -> list[Line]:
    """SNVs everywhere, contig ends, indels in and out of repeats, several ALTs, several bases."""
    found: list[Line] = []
    for name, letters in contigs().items():
        for place in range(0, len(letters), 1 if name == "short" else 31):
            ref = letters[place : place + 1].decode().upper()
            if ref != "N":
                others = [base for base in "ACGT" if base != ref]
                found.append((name, place + 1, ref, ",".join(others[: 1 + place % 3])))
    text = contigs()
    for name, start, cut, alt in [
        ("plain", 0, 4, ""),  # begins the contig
        ("plain", 60, 3, "TTGC"),
        ("plain", 90, 5, "C"),
        ("plain", 197, 3, "AGAGAG"),  # ends it
        ("repeats", 2, 2, ""),
        ("repeats", 4, 0, "ACAC"),
        ("repeats", 20, 1, ""),
        ("repeats", 45, 0, "G"),
        ("repeats", 50, 3, "acg"),
        ("short", 0, 1, ""),
        ("short", 6, 1, ""),
        ("short", 3, 0, "TT"),
    ]:
        ref = text[name][start : start + cut].decode().upper()
        anchor = text[name][start - 1 : start].decode().upper() if start else ""
        after = "" if start else text[name][cut : cut + 1].decode().upper()
        found.append((name, start + (not start), anchor + ref + after, anchor + alt + after))
    order = list(text)
    return sorted(found, key=lambda line: (order.index(line[0]), line[1]))


@cache
def models() -> dict[str, HyenaGLT]:
    merged = lively_model(merged_config("S(M)S"), dna(2, 64))
    return {
        "SML": small_model(small_config("SML")),
        "A": small_model(small_config("WA")),
        "S(M)S": merged,
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("variants")
    return (
        write_vcf(folder / "a.vcf", variants()),
        write_fasta(folder / "a.fa", contigs()),
    )


def scored(model: HyenaGLT, files: tuple[Path, Path], output: Path, **options: Any):
    """The rows of the table."""
    chosen = ScoreOptions(**{"window": WINDOW, "dtype": "float64", **options})
    report = score_variants(model, *files, output, chosen)
    assert report.output == output and report.survey.match_rate == 1
    return pq.read_table(output).to_pylist()


def furthest(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> float:
    """The largest difference of any number of any row."""
    assert len(found) == len(wanted)
    differences = [0.0]
    for one, other in zip(found, wanted, strict=True):
        assert one["status"] == other["status"]
        for name in NUMBERS:
            assert (one[name] is None) == (other[name] is None)
            if one[name] is not None:
                differences.append(abs(one[name] - other[name]))
    return max(differences)


@pytest.mark.parametrize("name", ["SML", "A", "S(M)S"])
def test_scores_are_those_of_one_call_per_allele_and_strand(name, files, tmp_path) -> None:
    model = models()[name].eval()
    rows = scored(model, files, tmp_path / "s.parquet")
    text, checked = contigs(), 0
    silent = [_key(row) for row in rows if row["status"] == "no_context"]
    assert silent == [line for line in variants() if _reaches_an_end(line)] and len(silent) == 3
    for row in rows:
        if row["status"] == "no_context":
            continue
        letters = text[row["contig"]]
        alt = row["alt"]
        if letters[row["position"] - 1 : row["position"]].islower():
            alt = _in_case(letters, row)
        strands = score(model, letters, row["position"], _ref(letters, row), alt, WINDOW)
        means = [sum(pair) / 2 for pair in zip(*strands, strict=True)]
        for wanted, column in zip(means, DELTAS, strict=True):
            assert row[column] == pytest.approx(wanted, abs=1e-10), row
        forward, backward = (
            row[f"alt_ll_{s}"] - row[f"ref_ll_{s}"] for s in ("forward", "reverse")
        )
        assert (forward, backward) == pytest.approx((strands[0][0], strands[1][0]), abs=1e-10)
        checked += abs(means[0]) > 1e-3
    assert checked > 25


def _reaches_an_end(line: Line) -> bool:
    """A deletion behind which, on one strand, nothing is left to score."""
    contig, position, ref, alt = line
    whole = contigs()[contig]
    return len(alt) < len(ref) and (position == 1 or position - 1 + len(ref) == len(whole))


def _ref(letters: bytes, row: dict[str, Any]) -> str:
    return letters[row["position"] - 1 : row["position"] - 1 + len(row["ref"])].decode()


def _in_case(letters: bytes, row: dict[str, Any]) -> str:
    """These variants in lower case have lower case on both sides too, but at its borders."""
    end = row["position"] - 1 + len(row["ref"])
    site = letters[max(0, row["position"] - 2) : end + 1]
    return row["alt"].lower() if site.islower() else row["alt"]


@pytest.mark.parametrize("name", ["S(M)S"])
def test_scores_do_not_depend_on_batches_parts_or_order(name, files, tmp_path) -> None:
    model = models()[name]
    wanted = scored(model, files, tmp_path / "s.parquet")
    for number, how in enumerate([{"batch_tokens": 1}, {"batch_tokens": 10**6}, {"part": 5}]):
        found = scored(model, files, tmp_path / f"s{number}.parquet", **how)
        assert furthest(found, wanted) < 1e-10, how
    alone = variants()[9]
    one = write_vcf(tmp_path / "one.vcf", [alone]), files[1]
    found = scored(model, one, tmp_path / "one.parquet")
    same = [row for row in wanted if row["record"] == 10]
    assert furthest([{**row, "record": 10} for row in found], same) < 1e-10


def test_single_precision_is_stable_too(files, tmp_path) -> None:
    model = deepcopy(models()["SML"]).float()
    tables = [
        scored(model, files, tmp_path / f"{n}.parquet", dtype="float32", batch_tokens=n)
        for n in (1, 10**6)
    ]
    assert furthest(*tables) < 1e-4
    double = scored(model.double(), files, tmp_path / "64.parquet")
    assert 0 < furthest(tables[0], double) < 1e-3


@pytest.mark.parametrize("name", ["S(M)S"])
def test_the_other_strand_has_the_same_scores(name, files, tmp_path) -> None:
    model, text = models()[name], contigs()
    turned = sorted(
        (mirrored(line, text) for line in variants()),
        key=lambda line: (list(text).index(line[0]), line[1]),
    )
    other = (
        write_vcf(tmp_path / "b.vcf", turned),
        write_fasta(tmp_path / "b.fa", {n: reverse(letters) for n, letters in text.items()}),
    )
    wanted = {_key(row): row for row in scored(model, files, tmp_path / "a.parquet")}
    found = scored(model, other, tmp_path / "b.parquet")
    assert len(found) == len(wanted)
    asymmetric = 0.0
    for row in found:
        same = wanted[mirrored(_key(row), text)]
        assert row["status"] == same["status"]
        if row["status"] != "scored":
            continue
        for name in DELTAS:
            assert row[name] == pytest.approx(same[name], abs=1e-10)
        assert row["alt_ll_forward"] == pytest.approx(same["alt_ll_reverse"], abs=1e-10)
        asymmetric = max(asymmetric, abs(same["alt_ll_forward"] - same["alt_ll_reverse"]))
    assert asymmetric > 1e-3


def _key(row: dict[str, Any]) -> Line:
    return row["contig"], row["position"], row["ref"], row["alt"]


def test_every_way_of_writing_a_change_has_one_score(files, tmp_path) -> None:
    """Padded, left-aligned, right-aligned: TTTT → TTT within the run of T of `repeats`."""
    text = contigs()["repeats"]
    run = text.index(b"TTTT")
    lines: list[Line] = [
        ("repeats", run, "GT", "G"),
        ("repeats", run + 1, "TT", "T"),
        ("repeats", run + 4, "TTT", "TT"),
        ("repeats", run + 12, "TG", "G"),
    ]
    ways = write_vcf(tmp_path / "ways.vcf", lines), files[1]
    rows = scored(models()["SML"], ways, tmp_path / "ways.parquet")
    assert abs(rows[0]["delta_ll"]) > 1e-3
    for name in (*DELTAS, "window_start", "left", "right", "ref_bases"):
        assert len({row[name] for row in rows}) == 1, name


def test_one_strand_alone(files, tmp_path) -> None:
    model = models()["SML"]
    both = scored(model, files, tmp_path / "b.parquet")
    forward = scored(model, files, tmp_path / "f.parquet", strands="forward")
    for one, other in zip(forward, both, strict=True):
        assert one["ref_ll_reverse"] is None
        if one["status"] != "scored":
            continue
        assert one["ref_ll_forward"] == pytest.approx(other["ref_ll_forward"], abs=1e-10)
        wanted = other["alt_ll_forward"] - other["ref_ll_forward"]
        assert one["delta_ll"] == pytest.approx(wanted, abs=1e-10)


def test_a_model_of_upper_case_is_shown_upper_case(files, tmp_path) -> None:
    from megatron_hyena.formats.reference import open_reference
    from megatron_hyena.variants.reading import read_records
    from megatron_hyena.variants.rows import rows_of
    from megatron_hyena.variants.scoring import Scorer

    upper = write_fasta(tmp_path / "u.fa", {n: s.upper() for n, s in contigs().items()})
    records, model = list(read_records(files[0])), models()["SML"]
    wanted = rows_of(records, open_reference(upper), WINDOW, Scorer(model, 999), True).to_pylist()
    genome = open_reference(files[1])
    folded = rows_of(records, genome, WINDOW, Scorer(model, 999, fold=True), True).to_pylist()
    assert furthest(folded, wanted) < 1e-10
    kept = rows_of(records, genome, WINDOW, Scorer(model, 999), True).to_pylist()
    assert furthest(kept, wanted) > 1e-3


def test_a_model_of_several_types_is_told_the_type(files, tmp_path) -> None:
    """The reference is DNA, where nothing tells a model of RNA by default otherwise."""
    model = small_model(small_config("SL", type_embedding="rna")).eval()
    rows = scored(model, files, tmp_path / "s.parquet")
    row = next(r for r in rows if (r["left"] or 0) > 9 and len(r["ref"]) == len(r["alt"]) == 1)
    letters = contigs()["plain"][row["window_start"] :][: row["left"] + 1 + row["right"]]
    ids = torch.tensor([list(letters)])
    sums = []
    for kind in (0, 1):
        with torch.no_grad():
            logs = model(ids, tracks={"type": torch.full_like(ids, kind)}).logits[0].log_softmax(-1)
        places = range(row["left"], len(letters))
        sums.append(sum(float(logs[i - 1, letters[i]]) for i in places))
    assert row["ref_ll_forward"] == pytest.approx(sums[0], abs=1e-10)
    assert abs(sums[0] - sums[1]) > 1e-3
