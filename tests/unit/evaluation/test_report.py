"""The comparison table: what it says, what it marks, and that it survives the disk."""

from __future__ import annotations

import json

import pytest

from megatron_hyena.errors import UserError
from megatron_hyena.evaluation.markov import MarkovRow
from megatron_hyena.evaluation.report import (
    EvaluationReport,
    format_report,
    read_report,
    verdict,
    write_report,
)

ROWS = (
    MarkovRow(1, "additive", False, 1.9621, (731.0,)),
    MarkovRow(1, "interpolated", True, 1.9602, (0.5, 6910.0)),
    MarkovRow(2, "additive", False, 1.9542, (67.2,)),
    MarkovRow(2, "interpolated", True, 1.9550, (1.0, 2.0, 3.0)),
    MarkovRow(3, "interpolated", True, 1.9700, (1.0, 2.0, 3.0, 4.0)),
)


def report(model_bits=1.9123, rows=ROWS):
    return EvaluationReport("Hyena-GLT (0.4M)", model_bits, 52_125, rows)


def test_shows_the_best_variant_of_each_order_and_marks_the_best_of_all():
    lines = format_report(report()).splitlines()
    rows = {line.split("  ")[1]: line for line in lines if line.startswith("  ") and "." in line}
    assert list(rows) == [
        "uniform",
        "Markov order 1",
        "Markov order 2",
        "Markov order 3",
        "Hyena-GLT (0.4M)",
    ]
    assert "1.9602" in rows["Markov order 1"] and "both strands" in rows["Markov order 1"]
    assert "1.9542" in rows["Markov order 2"] and "additive, one strand" in rows["Markov order 2"]
    assert [name for name, line in rows.items() if "best Markov" in line] == ["Markov order 2"]
    assert "2.0000" in rows["uniform"] and "-0.0877" in rows["Hyena-GLT (0.4M)"]
    assert "52,125" in lines[0]
    assert len({line.index(".") for line in rows.values() if "GLT" not in line}) == 1  # aligned


@pytest.mark.parametrize(
    ("model_bits", "words"),
    [
        (1.9123, "beats the best Markov model (order 2, additive, one strand) by 0.0419 bits"),
        (1.9642, "LOSES to the best Markov model (order 2, additive, one strand) by 0.0100 bits"),
        (1.95421, "equals the best Markov model"),
    ],
)
def test_the_last_line_is_the_verdict(model_bits, words):
    text = format_report(report(model_bits))
    assert text.splitlines()[-1] == verdict(report(model_bits))
    assert words in verdict(report(model_bits))


def test_a_written_report_reads_back_equal(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    write_report(report(), path)
    assert read_report(path) == report()
    content = json.loads(path.read_text())
    assert content["best_markov"]["order"] == 2
    assert content["margin_bits_per_base"] == pytest.approx(1.9542 - 1.9123)
    assert [child.name for child in path.parent.iterdir()] == ["evaluation.json"]


def test_bad_figures_and_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"Hyena-GLT .* has nan bits per base"):
        report(float("nan"))
    with pytest.raises(UserError, match="needs at least one Markov row"):
        report(rows=())
    with pytest.raises(UserError, match=r"does not exist; run pretrain.evaluate"):
        read_report(tmp_path / "none.json")
    for content in ("{", "[]", "{}"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(UserError, match=r"other.json is no evaluation report"):
            read_report(tmp_path / "other.json")
