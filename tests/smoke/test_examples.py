"""Every script of `examples/` runs, small, and says what its reader came for."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from Bio.Seq import Seq

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "adapt_to_task": [],
    "analyse_sequence": ["--width", "32", "--layers", "3"],
    "convert_model": [],
    "compare_orders": ["--width", "32", "--length", "128"],
    "custom_filter": [],
    "finetune": ["--steps", "60"],
    "embed": ["--bases", "3000", "--chunk", "70"],
    "generate": [],
    "hybrid_model": ["--width", "32", "--length", "64"],
    "monitor_performance": ["--lengths", "64", "128", "--width", "16"],
    "open_in_transformers": [],
    "read_in_pieces": ["--width", "16", "--length", "500", "--chunk", "90"],
    "score_variants": ["--variants", "8", "--window", "60"],
    "sequence_lengths": [],
}

pytestmark = pytest.mark.smoke


@pytest.fixture
def printed(request, capsys, own_filter_names) -> list[str]:
    """What a script prints, by line."""
    module = importlib.import_module(f"examples.{request.param}")
    assert module.main(SCRIPTS[request.param]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    return lines


def first(pattern: str, line: str) -> str:
    """What the first group of `pattern` is in `line`."""
    match = re.search(pattern, line)
    assert match, line
    return match[1]


def run(name: str):
    """The output of one script, as the fixture `printed`."""
    return pytest.mark.parametrize("printed", [name], indirect=True)


def test_every_script_is_run_here() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(SCRIPTS)


@run("compare_orders")
def test_more_stages_have_more_parameters(printed: list[str]) -> None:
    counts = [first(r"([\d,]+) parameters", line) for line in printed]
    parameters = [int(count.replace(",", "")) for count in counts]
    assert len(parameters) == 3
    assert parameters == sorted(set(parameters))
    assert all(line.endswith("(2, 128, 32)") for line in printed)


@run("sequence_lengths")
def test_the_rule_of_lengths_is_printed(printed: list[str]) -> None:
    assert [first(r"^length (\d+):", x) for x in printed[::2]] == ["1024", "4096", "8192", "16384"]
    assert [first(r"(\d+) taps", x) for x in printed[::2]] == ["32", "64", "128", "128"]
    assert all("parameters" in line for line in printed[1::2])


@run("monitor_performance")
def test_each_length_has_its_speed(printed: list[str]) -> None:
    for line, length in zip(printed, (64, 128), strict=False):
        assert int(first(rf"^length {length}: (\d+) tokens", line)) > 0
    assert printed[2] == "Performance of 2 forward passes"
    assert "average sequence length: 96" in printed[3]


@run("read_in_pieces")
def test_chunks_are_the_whole_and_go_on(printed: list[str]) -> None:
    assert float(first(r"differ by (\S+)", printed[0])) < 1e-4
    assert float(first(r"remembered: (\d+) KiB", printed[1])) > 0
    assert re.fullmatch(r"written: [ACGT]{20}", printed[2])


@run("open_in_transformers")
def test_a_head_on_the_exported_model_learns(printed: list[str]) -> None:
    assert "model.safetensors" in printed[0] and "README.md" in printed[0]
    losses = [float(x) for x in first(r"^loss (.*)", printed[1]).split(" -> ")]
    assert losses[1] < 0.1 * losses[0]
    assert printed[2] == "AATATT is AT-rich"


@run("generate")
def test_sequences_are_written_under_constraints(printed: list[str]) -> None:
    assert [len(first(r"-> ([ACGT]+)$", line)) for line in printed[:3]] == [40, 40, 40]
    frame = first(r"^frame: ([ACGT]+) \(length, [\d.]+ nats per base\)$", printed[3])
    assert frame.startswith("ATG") and "*" not in Seq(frame).translate(11)
    gene = first(r"^gene: ([ACGT]+) \(constraint, ", printed[4])
    assert str(Seq(gene).translate(11)) == "MKTAYIAKQR*"


@run("custom_filter")
def test_a_filter_of_ones_own_trains_and_is_saved_by_name(printed: list[str]) -> None:
    for line, name in zip(printed, ("codon", "genomic"), strict=True):
        assert float(first(r"-> ([\d.]+) nats", line)) < float(first(r"loss ([\d.]+) ->", line))
        assert line.startswith(f"{name}: ")
        assert line.endswith("the same: True")


@run("finetune")
def test_additions_learn_and_the_saved_model_tells_the_same(printed: list[str]) -> None:
    assert printed[0] == "lora: 14,530 of 138,462 parameters"
    assert float(first(r"sequences: ([\d.]+)", printed[1])) > 0.8
    assert printed[2].endswith("of classes absent and present: the same True")


@run("hybrid_model")
def test_three_ways_to_mix_layers(printed: list[str]) -> None:
    patterns = [first(r"pattern (\S+),", line) for line in printed]
    assert patterns == ["[AHH]4", "[HA]6", "[WHH]4"]


@run("adapt_to_task")
def test_the_adapted_model_learns_its_task(printed: list[str]) -> None:
    assert printed[0].startswith("refused: blocks.0.mixer")
    assert printed[1] == "filters: 8 taps, then 16"
    assert float(printed[2].rpartition(" ")[2]) > 0.8


@run("analyse_sequence")
def test_a_sequence_is_analysed(printed: list[str]) -> None:
    assert printed[0] == "sequence length: 3000"
    assert printed[1] == "features: (1, 3000, 32)"
    shares = [float(x) for x in first(r"\[(.*)\]", printed[2]).split(",")]
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1.0, abs=1e-6)
    assert "tokens per second" in printed[-1]


def test_scripts_are_programs() -> None:
    result = subprocess.run(
        [sys.executable, "examples/sequence_lengths.py", "--lengths", "64", "--width", "64"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert "filters of 32 taps" in result.stdout


@run("score_variants")
def test_variants_are_scored(printed: list[str]) -> None:
    assert "100% of 8 records" in printed[0]
    deltas = [float(first(r"delta_ll (\S+)", line)) for line in printed[1:]]
    assert len(deltas) == 6 and deltas == sorted(deltas) and deltas[0] < deltas[-1]


@run("embed")
def test_embeddings_equal_one_pass(printed: list[str]) -> None:
    assert printed[0] == "43 rows of 32 numbers"
    assert float(first(r"differ by (\S+)", printed[1])) < 1e-5


@run("convert_model")
def test_models_come_back_from_other_programs(printed: list[str]) -> None:
    assert [line.partition(":")[0] for line in printed] == ["vortex", "stripedhyena", "refused"]
    assert all(float(first(r"differ by (\S+)", line)) < 1e-5 for line in printed[:2])
    assert "has no layer like M" in printed[2]
