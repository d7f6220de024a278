"""The rendered sbatch script, and the mistakes that are refused before anything is submitted."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch import submit
from launch.script import JobSpec, render, time_limit_seconds
from megatron_hyena.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
CPU_JOB = JobSpec(
    config="configs/run/quickstart.yaml",
    overrides=("parallel.tensor=2",),
    python="/home/user/megatron-hyena/.venv/bin/python",
    work_dir=Path("/home/user/megatron-hyena"),
    log_dir=Path("/home/user/megatron-hyena/runs/quickstart/slurm"),
    nodes=2,
    gpus_per_node=0,
    tasks_per_node=1,
)
GPU_JOB = dataclasses.replace(
    CPU_JOB,
    overrides=("run.output_dir=/scratch/long genomes", "data.train=/data/shards/*"),
    log_dir=Path("/scratch/long genomes/slurm"),
    nodes=4,
    gpus_per_node=8,
    tasks_per_node=8,
    job_name="long genomes",
    cpus_per_task=12,
    time="2-00:00:00",
    grace_seconds=600,
    partition="gpu",
    account="biology",
    options=(("gres", "gpu:h100:8"), ("exclusive", ""), ("comment", 'say "50%"')),
)
FINETUNING_JOB = dataclasses.replace(
    CPU_JOB, config="configs/run/finetune_coding.yaml", overrides=(), module="pretrain.finetune"
)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(f"run:\n  output_dir: {tmp_path}/a run\ntrain:\n  global_batch_size: 8\n")
    return path


@pytest.mark.parametrize(
    ("name", "spec"), [("cpu", CPU_JOB), ("gpu", GPU_JOB), ("finetune", FINETUNING_JOB)]
)
def test_script_is_the_golden_one(name: str, spec: JobSpec) -> None:
    """To accept a changed template: RENEW_GOLDEN=1 pytest tests/unit/launch."""
    golden = GOLDEN / f"{name}.sbatch"
    if os.environ.get("RENEW_GOLDEN"):
        golden.write_text(render(spec))
    assert render(spec) == golden.read_text()


@pytest.mark.parametrize("spec", [CPU_JOB, GPU_JOB])
def test_script_is_valid_shell(spec: JobSpec) -> None:
    reply = subprocess.run(["bash", "-n"], input=render(spec), text=True, capture_output=True)
    assert (reply.returncode, reply.stderr) == (0, "")


def test_rank_receives_its_arguments_unharmed(tmp_path: Path) -> None:
    """The script runs for real; `srun` and `scontrol` are reduced to what one rank sees of them."""
    odd = ("data.train=/a b/*", "run.x=it's $HOME `id` \\", 'q="1"', "line\nbreak")
    log_dir = tmp_path / "it's a $(run) 100%"
    log_dir.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "srun": 'while [ "$1" != bash ]; do shift; done; exec "$@"',
        "scontrol": '[ "$1" = show ] && echo node7 || echo "$@" >> requeued',
        "python": (
            'printf "%s\\n" "$@" "$RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE"'
            ' "$MASTER_ADDR:$MASTER_PORT" "$OMP_NUM_THREADS" > seen; exit $STATUS'
        ),
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    spec = dataclasses.replace(CPU_JOB, python="python", overrides=odd, log_dir=log_dir)

    def run(status: int) -> int:
        environment = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "STATUS": str(status),
            "SLURM_JOB_ID": "20345",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_CPUS_PER_TASK": "3",
        }
        command = ["bash", "-c", render(spec)]
        return subprocess.run(command, env=environment, cwd=tmp_path).returncode

    assert run(0) == 0
    assert (tmp_path / "seen").read_text() == (
        "\n".join(["-m", "pretrain.train", CPU_JOB.config, *odd, "0 of 2, 0 of 1", "node7:12345"])
        + "\n3\n"
    )
    assert run(7) == 7
    assert not (tmp_path / "requeued").exists()
    assert run(85) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 20345\n"
    assert list(log_dir.iterdir()) == []  # no mark is left that a later start would trip over


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("12:00:30", 43230),
        ("2-6", 194400),
        ("1-00:30", 88200),
        ("1-00:00:05", 86405),
        ("UNLIMITED", 0),
    ],
)
def test_time_limit(text: str, seconds: int) -> None:
    assert time_limit_seconds(text) == seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 0}, "--nodes 0 is too small: give 1 or more"),
        ({"gpus_per_node": -1}, "--gpus-per-node -1 is too small"),
        ({"gpus_per_node": 4, "tasks_per_node": 2}, "--tasks-per-node 2 differs .* leave it out"),
        ({"cpus_per_task": 0}, "--cpus-per-task 0 is too small"),
        ({"time": "tomorrow"}, "--time tomorrow is not a time limit: write minutes"),
        ({"time": "5", "grace_seconds": 300}, "--time 5 leaves no time to train .* lower --grace"),
        ({"grace_seconds": 70000}, "--grace 70000 is more than Slurm's limit of 65535"),
    ],
)
def test_impossible_jobs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CPU_JOB, **change)


@pytest.mark.parametrize(
    ("option", "message"),
    [(("", "x"), "not the name of an sbatch option"), (("comment", "a\nb"), "holds a line break")],
)
def test_options_that_would_break_the_head_are_refused(
    option: tuple[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        render(dataclasses.replace(CPU_JOB, options=(option,)))


def test_dry_run_prints_the_script_and_writes_nothing(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(config_file), "--nodes", "2", "parallel.tensor=2", "--gpus-per-node", "4"]
    options = ["--sbatch-option", "qos=long", "--sbatch-option", "exclusive", "--dry-run"]
    assert submit.main([*arguments, "train.steps=7", *options]) == 0
    script = capsys.readouterr().out
    assert f'#SBATCH --output="{tmp_path}/a run/slurm/%j.log"\n' in script
    assert '#SBATCH --job-name="a run"\n' in script
    assert "#SBATCH --qos=long\n#SBATCH --exclusive\n" in script
    assert f"-m pretrain.train {config_file} parallel.tensor=2 train.steps=7\n" in script
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.fixture
def finetuning_file(tmp_path: Path) -> Path:
    """A run from a folder of `save_pretrained`, of which its description is there."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"pattern": "SA", "num_heads": 4}')
    (tmp_path / "part.yaml").write_text(f"finetune: {{from: {tmp_path}/model}}\n")
    path = tmp_path / "tune.yaml"
    path.write_text(
        f"include: [part.yaml]\nrun: {{output_dir: {tmp_path}/tuned}}\n"
        "task: {kind: token_classification, store: genome.zarr}\ntrain: {global_batch_size: 8}\n"
    )
    return path


def test_fine_tuning_is_run_by_its_own_program(
    finetuning_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(finetuning_file), "--nodes", "2", "--gpus-per-node", "2", "--dry-run"]
    assert submit.main([*arguments, "parallel.tensor=4"]) == 0
    script = capsys.readouterr().out
    assert f"-m pretrain.finetune {finetuning_file} parallel.tensor=4\n" in script
    assert f"{finetuning_file.parent}/tuned/slurm/%j.log" in script


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["parallel.tensor=8"], "parallel.tensor"),
        (["finetune.method=lora", "parallel.tensor=4"], "finetune.method=lora adds to whole"),
        (["finetune.from=nowhere"], "finetune.from=nowhere: neither a run folder or checkpoint"),
        (["train.stps=4"], "train.steps"),
    ],
)
def test_fine_tuning_that_cannot_be(
    overrides: list[str],
    message: str,
    finetuning_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(finetuning_file), "--nodes", "2", "--gpus-per-node", "2", "--dry-run"]
    assert submit.main([*arguments, *overrides]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and message in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "3", "--gpus-per-node", "1", "parallel.tensor=2"], "3 ranks"),
        (["--nodes", "1", "--gpus-per-node", "0", "parallel.tensr=2"], "parallel.tensor"),
        (["--nodes", "2", "--gpus-per-node", "0"], "sbatch was not found"),
    ],
)
def test_one_sentence_for_a_users_mistake(
    arguments: list[str],
    message: str,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert submit.main([str(config_file), *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert message in text


def test_submission_says_where_to_look(
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/bash\n[ -f "$2" ] && echo "31;cluster"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    arguments = [str(config_file), "--nodes", "2", "--gpus-per-node", "0"]
    assert submit.main(arguments) == 0
    text = capsys.readouterr().out
    assert "submitted job 31: 2 nodes x 1 ranks" in text
    assert f"tail -F '{tmp_path}/a run/slurm/31.log'" in text
    assert [path.name for path in (tmp_path / "a run/slurm").iterdir()] == ["train.sbatch"]

    sbatch.write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    assert submit.main(arguments) == 2
    assert "(sbatch: error: invalid partition): mend that" in capsys.readouterr().err
