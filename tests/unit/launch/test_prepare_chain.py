"""The chain of jobs that makes a corpus: its scripts, and what is refused before submission."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from launch import submit
from launch.prepare import STAGES, ChainSpec, render
from tests.oracles.small_corpus import write_inputs

GOLDEN = Path(__file__).parent / "golden"
SPEC = ChainSpec(
    arguments=("configs/corpus/example.yaml", "splits.by=taxon"),
    python="/home/user/megatron-hyena/.venv/bin/python",
    work_dir=Path("/home/user/megatron-hyena"),
    output=Path("/scratch/all genomes"),
    tasks=32,
    job_name="all genomes",
    cpus_per_task=4,
    time="4:00:00",
    options=(("mem", "16G"),),
)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    config = tmp_path / "corpus.yaml"
    config.write_text(f"inputs: {{sheet: {write_inputs(tmp_path / 'inputs')}}}\n")
    return ["--prepare", str(config), "--output", str(tmp_path / "a corpus"), "--tasks", "2"]


@pytest.mark.parametrize("stage", ["store", "plan"])
def test_script_of_a_stage_is_the_golden_one(stage: str) -> None:
    """To accept a changed template: RENEW_GOLDEN=1 pytest tests/unit/launch."""
    golden = GOLDEN / f"prepare_{stage}.sbatch"
    if os.environ.get("RENEW_GOLDEN"):
        golden.write_text(render(SPEC, stage))
    assert render(SPEC, stage) == golden.read_text()


def test_scripts_are_valid_shell_and_pass_arguments_unharmed(tmp_path: Path) -> None:
    odd = ("a b.yaml", "inputs.name=it's $HOME `id` \\", "line\nbreak")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/seen\n')
    python.chmod(0o755)
    spec = dataclasses.replace(SPEC, arguments=odd, python=str(python))
    for stage, array in STAGES.items():
        environment = {"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
        if array:
            environment |= {"SLURM_ARRAY_TASK_ID": "5", "SLURM_CPUS_PER_TASK": "4"}
        subprocess.run(["bash", "-c", render(spec, stage)], env=environment, check=True)
        words = (tmp_path / "seen").read_text()
        place = ["5/32", "--jobs", "4"] if array else ["0/1", "--jobs", "1"]
        expected = ["-m", "tools.prepare_corpus", *odd, "--output", "/scratch/all genomes"]
        assert words == "\n".join([*expected, "--stage", stage, "--task", *place]) + "\n"


def test_dry_run_prints_all_stages_and_writes_nothing(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main([*options, "splits.by=contig", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert text.count("#!/usr/bin/env bash") == 4
    assert text.count("#SBATCH --array=0-1\n") == 2
    assert text.count("splits.by=contig --output") == 4
    assert "# sbatch --dependency=afterok:<store's job> " in text
    assert not (tmp_path / "a corpus").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["splits.bye=contig"], "did you mean splits.by"),
        (["--tasks", "0"], "--tasks 0 is too small"),
        (["--time", "noon"], "--time noon is not a time limit"),
        ([], "sbatch was not found"),
    ],
)
def test_a_mistake_is_one_sentence(
    more: list[str],
    message: str,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit.main([*options, *more]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert message in text


def test_each_stage_waits_for_the_one_before(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = tmp_path / "log"
    sbatch, scancel = tmp_path / "sbatch", tmp_path / "scancel"
    sbatch.write_text(f'#!/bin/bash\necho "$@" >> {log}; wc -l < {log}\n')
    scancel.write_text(f'#!/bin/bash\necho scancel "$@" >> {log}\n')
    for program in (sbatch, scancel):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert submit.main(options) == 0
    folder = tmp_path / "a corpus/.work/slurm"
    waits = ["", "--dependency=afterok:1 ", "--dependency=afterok:2 ", "--dependency=afterok:3 "]
    assert log.read_text().splitlines() == [
        f"--parsable {wait}{folder}/{stage}.sbatch"
        for wait, stage in zip(waits, STAGES, strict=True)
    ]
    assert "store 1, plan 2, shards 3, finish 4" in capsys.readouterr().out
    log.unlink()
    sbatch.write_text(
        f'#!/bin/bash\necho "$@" >> {log}; n=$(wc -l < {log}); '
        "[ $n -lt 3 ] && echo $n || { echo 'over the limit' >&2; exit 1; }\n"
    )
    assert submit.main(options) == 2
    assert "(over the limit): mend that" in capsys.readouterr().err
    assert log.read_text().splitlines()[-1] == "scancel 1 2"
