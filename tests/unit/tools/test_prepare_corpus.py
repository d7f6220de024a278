"""The program that makes corpora: what it prints, what it refuses, its shipped configurations."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_hyena.corpus.options import load_options
from megatron_hyena.runtime.lock import only_process_in
from tests.oracles.small_corpus import OVERRIDES, tree, write_inputs
from tools import prepare_corpus

CONFIGS = Path(__file__).parents[3] / "configs/corpus"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    path = folder / "corpus.yaml"
    path.write_text(f"inputs: {{sheet: {write_inputs(folder)}}}\n")
    return path


def test_it_prints_what_was_kept_and_dropped(tmp_path, config, capsys):
    root = tmp_path / "corpus"
    arguments = [str(config), *OVERRIDES, "--output", str(root)]
    assert prepare_corpus.main(arguments) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    report = json.loads((root / "report.json").read_text())
    assert f"read 36 {report['bases']:,}" in lines
    assert "dropped: exact duplicate 1 1,800" in lines
    assert f"kept 35 {report['kept']['bases']:,}" in lines
    assert any(line.startswith("chosen valid") for line in lines)
    assert lines[-1].startswith(f"corpus {report['corpus'][:12]} in ")
    before = tree(root)
    assert prepare_corpus.main([*arguments, "--stage", "shards", "--task", "1/3"]) == 0
    assert capsys.readouterr().out == ""
    assert tree(root).items() >= before.items()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "0/2"], "--task 0/2 is of no stage; add --stage"),
        (["--stage", "store", "--task", "2/2"], "--task 2/2 is not I/N with I from 0 to N - 1"),
        (["--stage", "store", "--task", "x"], "--task x is not I/N"),
        (["--jobs", "0"], "--jobs is 0; give 1 or more"),
        (["--stage", "finish"], "store/alpha is not finished"),
        (["curation.unknown_rum=4"], "did you mean curation.unknown_run"),
        (["curation.minimum_length=9999"], "curation leaves none of 36 records"),
        (["curation.exclude_taxa=[Alpa]"], "the nearest is 'alpha'"),
        (["shards.features=true"], "no sample has an annotation"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, config, capsys, more, message):
    names = {item.partition("=")[0] for item in more}
    usual = [item for item in OVERRIDES if item.partition("=")[0] not in names]
    assert prepare_corpus.main([str(config), *usual, "--output", str(tmp_path / "c"), *more]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert message in text
    assert not (tmp_path / "c/manifest.json").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path, config, capsys, monkeypatch):
    root = tmp_path / "corpus"
    monkeypatch.setattr(
        "megatron_hyena.corpus.build.only_process_in", lambda f, patience: only_process_in(f, 0.0)
    )
    with only_process_in(root / ".work"):
        assert prepare_corpus.main([str(config), *OVERRIDES, "--output", str(root)]) == 2
    assert f"process {os.getpid()} is at work in this folder" in capsys.readouterr().err


def test_shipped_configurations_load():
    paths = sorted(CONFIGS.glob("*.yaml"))
    assert [path.name for path in paths] == ["curated.yaml", "example.yaml"]
    assert load_options(paths[0], ["inputs.sheet=a.tsv"]).splits.by == "cluster"
    assert load_options(paths[1]).inputs.name == "chlamydia"
