"""Jobs on a real Slurm cluster of two emulated nodes: time limit, requeue, cancel, training."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.local_cluster import install, local_cluster, missing_requirement
from launch.script import JobSpec, render
from megatron_hyena.errors import UserError
from tests.oracles.small_corpus import OVERRIDES, tree, write_inputs

REPOSITORY = Path(__file__).parents[2]
GENOME = REPOSITORY / "examples/chlamydia/ct.fasta.gz"
NODES = ["127.0.1.1", "127.0.1.2"]
STEPS = 40

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

Environment = dict[str, str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment in which Slurm's commands reach a cluster of two nodes."""
    if reason := missing_requirement():
        pytest.skip(reason)
    try:
        install()
    except UserError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("cluster")
    with local_cluster(root, nodes=2, gpus_per_node=2) as environment:
        yield environment
    assert not root.exists()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the example genome."""
    corpus = tmp_path_factory.mktemp("corpus")
    for tool, *arguments in (
        ("tools.prepare_genome", "--fasta", GENOME, "--output", corpus),
        ("tools.make_shards", "--store", corpus / "genome.zarr", "--output", corpus / "shards"),
    ):
        command = [sys.executable, "-m", tool, *map(str, arguments)]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=120)
    return corpus / "shards"


def wait_until(condition: Callable[[], Any], seconds: float, complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.1)


def run(cluster: Environment, *command: str | Path) -> str:
    """Standard output of a command that must succeed."""
    words = [str(word) for word in command]
    reply = subprocess.run(words, env=cluster, cwd=REPOSITORY, capture_output=True, text=True)
    assert reply.returncode == 0, reply.stdout + reply.stderr
    return reply.stdout


class Job:
    """A submitted job: its state as Slurm tells it, and its log."""

    def __init__(self, cluster: Environment, number: str, log_dir: Path) -> None:
        self.cluster = cluster
        self.number = number
        self.log_file = log_dir / f"{number}.log"

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def field(self, name: str) -> str:
        """A field of `scontrol show job`, such as JobState or Restarts."""
        text = run(self.cluster, "scontrol", "show", "job", self.number)
        match = re.search(rf"\b{name}=(\S*)", text)
        assert match is not None, text
        return match[1]

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        wait_until(condition, seconds, lambda: f"{self.field('JobState')} after {self.log}")

    def wait_for_end(self, seconds: float = 60) -> None:
        """Until the job has left its nodes and will not come back by itself."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait(lambda: self.field("JobState") in over, seconds)


def submit_probe(cluster: Environment, folder: Path, behaviour: str, **changes: Any) -> Job:
    """The rendered script with tests/slurm/rank_probe.py in place of training."""
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "config": str(folder),
        "overrides": (behaviour,),
        "python": sys.executable,
        "work_dir": REPOSITORY,
        "log_dir": folder,
        "nodes": 2,
        "gpus_per_node": 0,
        "tasks_per_node": 1,
        "module": "tests.slurm.rank_probe",
    }
    script = folder / "train.sbatch"
    script.write_text(render(JobSpec(**{**settings, **changes})))
    return Job(cluster, run(cluster, "sbatch", "--parsable", script).strip(), folder)


def test_ranks_meet_save_before_the_time_limit_and_start_again(
    cluster: Environment, tmp_path: Path
) -> None:
    """2 nodes x 2 GPUs (stand-ins). Slurm sends the signal; it looks at limits every 30 s."""
    folder = tmp_path / 'it\'s 100%j "odd"'
    job = submit_probe(
        cluster,
        folder,
        "stop_once",
        overrides=("stop_once", "a='x y'", "$HOME"),
        gpus_per_node=2,
        tasks_per_node=2,
        time="2",
        grace_seconds=115,
        options=(("comment", 'say "50%"'),),
    )
    job.wait_for_end(120)
    assert job.field("JobState") == "COMPLETED", job.log
    assert job.field("Restarts") == "1"

    for start in (0, 1):
        ranks = json.loads((folder / f"start_{start}.json").read_text())
        assert [each["rank"] for each in ranks] == [0, 1, 2, 3]
        assert [each["local_rank"] for each in ranks] == [0, 1, 0, 1]
        assert [each["node"] for each in ranks] == [NODES[0], NODES[0], NODES[1], NODES[1]]
        for each in ranks:
            assert (each["world_size"], each["local_world_size"]) == (4, 2)
            assert (each["total"], each["master"], each["threads"]) == (1111.0, NODES[0], "1")
            assert each["devices"] == "0,1"
            assert each["arguments"] == ["stop_once", "a='x y'", "$HOME"]
    saved = sorted(path.name for path in folder.glob("saved_by_*"))
    assert saved == [f"saved_by_{rank}" for rank in range(4)]
    assert not list(folder.glob("unfinished-*"))
    assert f"job {job.number}, start 1," in job.log  # the second start did not overwrite it
    assert f"job {job.number}, start 2," in job.log
    assert job.log.count("requeueing") == 1


def test_a_cancelled_job_saves_and_stays_cancelled(cluster: Environment, tmp_path: Path) -> None:
    """The ranks exit "unfinished" on SIGTERM, too; the user's word counts."""
    job = submit_probe(cluster, tmp_path / "run", "stop")
    job.wait((tmp_path / "run/start_0.json").exists)
    run(cluster, "scancel", job.number)
    job.wait_for_end()
    job.wait(lambda: run(cluster, "squeue", "--noheader") == "")
    assert (job.field("JobState"), job.field("Restarts")) == ("CANCELLED", "0")
    assert (tmp_path / "run/saved_by_0").exists()
    assert "requeueing" not in job.log


def test_one_failing_rank_ends_the_job(cluster: Environment, tmp_path: Path) -> None:
    job = submit_probe(cluster, tmp_path / "run", "fail")
    started = time.monotonic()
    job.wait_for_end()
    assert time.monotonic() - started < 30  # the other rank would have waited for 60
    assert (job.field("JobState"), job.field("Restarts")) == ("FAILED", "0")
    assert "task 1: Exited with exit code 3" in job.log


def test_two_node_training_requeues_and_resumes(
    cluster: Environment, shards: Path, tmp_path: Path
) -> None:
    """`launch.submit` on 2 nodes x 1 rank: stopped once in mid-run, it finishes all its steps."""
    run_dir = tmp_path / "run"
    overrides = [
        f"run.output_dir={run_dir}",
        f"data.train={shards}/train",
        f"data.valid={shards}/valid",
        "data.sequence_length=256",
        f"train.steps={STEPS}",
        "checkpoint.every=5",
        "log.every=1",
        "parallel.tensor=2",
        "parallel.sequence=true",
    ]
    options = ["--nodes", "2", "--gpus-per-node", "0", "--time", "20"]
    submit = [sys.executable, "-m", "launch.submit", "configs/run/quickstart.yaml"]
    reply = run(cluster, *submit, *options, *overrides)
    match = re.search(r"submitted job (\d+): 2 nodes x 1 ranks", reply)
    assert match is not None, reply
    job = Job(cluster, match[1], run_dir / "slurm")

    job.wait(lambda: len(logged_steps(run_dir)) >= 7, 180)
    run(cluster, "scancel", "--signal=USR1", job.number)
    job.wait(lambda: job.field("Restarts") == "1", 120)
    before = logged_steps(run_dir)
    stopped_at = before[-1]["step"]
    assert stopped_at < STEPS, "it finished before it was told to stop"
    assert (run_dir / f"checkpoints/step_{stopped_at:08d}").is_dir()
    assert not (run_dir / "summary.json").exists()

    job.wait_for_end(240)
    assert job.field("JobState") == "COMPLETED", job.log
    assert job.field("Restarts") == "1"
    after = logged_steps(run_dir)
    assert [row["step"] for row in after] == list(range(1, STEPS + 1))
    assert after[: len(before)] == before  # timings and all: the resumed job repeated no step
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == STEPS


FINETUNING = """
finetune: {{from: {folder}/model}}
task: {{name: motif, table: {folder}/motif.tsv}}
run: {{output_dir: {folder}/run}}
data: {{sequence_length: 32}}
train: {{steps: 400, global_batch_size: 8, micro_batch_size: 4, valid_every: 100}}
log: {{every: 1}}
"""


@pytest.mark.slow
def test_fine_tuning_requeues_and_resumes(cluster: Environment, tmp_path: Path) -> None:
    """`launch.submit` of a configuration of fine-tuning, stopped once like the training above."""
    from megatron_hyena import HyenaGLT, HyenaGLTConfig

    model = HyenaGLTConfig(pattern="S", hidden_size=16, num_filter_groups=2, vocab_size=128)
    HyenaGLT(model).save_pretrained(tmp_path / "model")
    rows = [f"{n:08b}".replace("0", "AC").replace("1", "GT") + f"\t{n % 2}" for n in range(256)]
    (tmp_path / "motif.tsv").write_text("\n".join(["sequence\tlabel", *rows]) + "\n")
    (tmp_path / "tune.yaml").write_text(FINETUNING.format(folder=tmp_path))
    submit = [sys.executable, "-m", "launch.submit", str(tmp_path / "tune.yaml")]
    reply = run(cluster, *submit, "--nodes", "2", "--gpus-per-node", "0", "--time", "20")
    match = re.search(r"submitted job (\d+): 2 nodes x 1 ranks", reply)
    assert match is not None, reply
    run_dir = tmp_path / "run"
    assert (run_dir / "slurm/finetune.sbatch").is_file()
    job = Job(cluster, match[1], run_dir / "slurm")
    job.wait(lambda: len(logged_steps(run_dir)) >= 3, 180)
    run(cluster, "scancel", "--signal=USR1", job.number)
    job.wait(lambda: job.field("Restarts") == "1", 120)
    assert logged_steps(run_dir)[-1]["step"] < 400, "it finished before it was told to stop"
    job.wait_for_end(240)
    assert job.field("JobState") == "COMPLETED", job.log
    assert [row["step"] for row in logged_steps(run_dir)] == list(range(1, 401))
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 400
    assert (run_dir / "best/heads.safetensors").is_file()


def logged_steps(run_dir: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl that tell of a training step."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if "loss" in row]


def test_a_corpus_is_made_by_a_chain_of_arrays(cluster: Environment, tmp_path: Path) -> None:
    """`launch.submit --prepare`: the bytes of a run on this machine; a failure stops the chain."""
    sheet = write_inputs(tmp_path / "inputs")
    config = tmp_path / "corpus.yaml"
    config.write_text(f"inputs: {{sheet: {sheet}}}\n")
    options = [str(config), *OVERRIDES]
    tool = [sys.executable, "-m", "tools.prepare_corpus"]
    run(cluster, *tool, *options, "--output", tmp_path / "here")

    def chain(output: Path) -> dict[str, Job]:
        submit = [sys.executable, "-m", "launch.submit", "--tasks", "2", "--output", str(output)]
        reply = run(cluster, *submit, "--prepare", *options)
        return {
            stage: Job(cluster, number, output / ".work/slurm")
            for stage, number in re.findall(r"(store|plan|shards|finish) (\d+)", reply)
        }

    jobs = chain(tmp_path / "there")
    assert list(jobs) == ["store", "plan", "shards", "finish"]
    jobs["finish"].wait_for_end(240)
    assert jobs["finish"].field("JobState") == "COMPLETED"
    logs = sorted(path.name for path in (tmp_path / "there/.work/slurm").glob("*.log"))
    store, plan, shards, finish = (job.number for job in jobs.values())
    arrays = [f"{name}_{i}" for name in (f"store-{store}", f"shards-{shards}") for i in (0, 1)]
    names = (*arrays, f"plan-{plan}", f"finish-{finish}")
    assert logs == sorted(f"{name}.log" for name in names)
    here, there = (tree(tmp_path / name) for name in ("here", "there"))
    assert {name: data for name, data in there.items() if "slurm" not in name} == here

    sheet.with_name("alpha.fa.gz").write_bytes(gzip.compress(b">a\nAC\n>a\nAC\n"))
    jobs = chain(tmp_path / "failed")
    jobs["finish"].wait_for_end(240)
    assert jobs["finish"].field("JobState") == "CANCELLED"
    assert jobs["plan"].field("JobState") == "CANCELLED"
    log = tmp_path / f"failed/.work/slurm/store-{jobs['store'].number}_0.log"
    assert "two records are named 'a'" in log.read_text()
    assert not (tmp_path / "failed/manifest.json").exists()
