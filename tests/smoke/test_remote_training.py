"""The whole path through an object store: shards written there, trained from, killed, resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.oracles.stores import Trouble, WebFolder
from tests.smoke.program import ROOT, Program, metrics
from tools import make_shards, prepare_genome

pytestmark = pytest.mark.smoke

STEPS = 8


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Shards of the shipped genome in a folder: 15 of training."""
    folder = tmp_path_factory.mktemp("corpus")
    genome = ROOT / "examples/chlamydia/ct.fasta.gz"
    assert prepare_genome.main(["--fasta", str(genome), "--output", str(folder)]) == 0
    assert make_shards.main(cut(folder, str(folder / "shards"))) == 0
    return folder


def cut(folder: Path, output: str) -> list[str]:
    sizes = ["--gap", "4096", "--piece-length", "32768", "--shard-size", "65536"]
    return ["--store", str(folder / "genome.zarr"), "--output", output, *sizes]


def train(shards: str, tmp_path: Path, run: Path, *overrides: str) -> Program:
    config = tmp_path / "run.yaml"
    config.write_text(f"""
model: {{pattern: SL, hidden_size: 16, num_heads: 2, num_filter_groups: 2, vocab_size: 128}}
train: {{steps: {STEPS}, global_batch_size: 4, micro_batch_size: 4, valid_every: 4,
         valid_sequences: 4}}
data: {{sequence_length: 256, cache_dir: {tmp_path}/cache}}
checkpoint: {{every: 2}}
log: {{every: 1}}
""")
    places = [f"data.train={shards}/train", f"data.valid={shards}/valid"]
    arguments = [str(config), f"run.output_dir={run}", *places, *overrides]
    return Program(1, arguments, tmp_path / f"log_{run.name}")


@pytest.fixture(scope="module")
def reference(local, tmp_path_factory) -> Path:
    """The run of an undisturbed program from the folder."""
    folder = tmp_path_factory.mktemp("reference")
    program = train(str(local / "shards"), folder, folder / "run")
    assert program.finish() == [0], program.output()
    return folder / "run"


def assert_same_figures(run: Path, reference: Path) -> None:
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert metrics(run, name) == metrics(reference, name)
    assert [record["step"] for record in metrics(run)] == list(range(1, STEPS + 1))


def test_s3_from_shards_to_a_resumed_run(local, reference, any_bucket, tmp_path):
    url, trouble = f"{any_bucket.url}/corpora/ct", any_bucket.trouble
    trouble.plan("shard-000003.tar", "503", method="PUT")
    assert make_shards.main(cut(local, url)) == 0
    # Each of these is met whichever shard comes first.
    trouble.plan("train/index.json", "500")
    trouble.plan("train/shard", "cut", "503", "short", "flip", "refuse")
    run = tmp_path / "run"
    program = train(url, tmp_path, run)
    program.wait_for_step(run, 3)
    program.kill()
    assert len(metrics(run)) < STEPS
    shown = program.output()
    assert f"{url}/train/index.json: attempt 1 of 8 failed (500" in shown
    assert len(re.findall(r"train/shard-\d+\.tar: attempt \d of 8 failed", shown)) >= 3
    assert "gave bytes of another SHA-256" in shown

    fetched = {path.name for path in (tmp_path / "cache").glob("*.tar")}
    trouble.asked.clear()
    program = train(url, tmp_path, run)
    assert program.finish() == [0], program.output()
    assert "resuming from" in program.output()
    assert_same_figures(run, reference)
    index = json.loads((local / "shards" / "train" / "index.json").read_text())
    for shard in index["shards"]:
        if f"{shard['sha256']}.tar" in fetched:  # not asked for again
            assert trouble.times(f"train/{shard['file']}") == 0


def test_shards_that_were_killed_on_their_way_to_s3(local, any_bucket, tmp_path):
    """No index until all is there, and what is there is not sent twice."""
    url, trouble = f"{any_bucket.url}/killed", any_bucket.trouble
    trouble.plan("train/shard-000007.tar", "hang", "hang", "hang", method="PUT")
    command = [sys.executable, "-m", "tools.make_shards", *cut(local, url)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while trouble.times("train/shard-000007.tar", "PUT") == 0:
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = any_bucket.objects().keys() - {"killed/.unfinished"}
    assert 5 <= len(there) < 15
    assert all(name.endswith(".tar") for name in there)

    trouble.clear()
    assert make_shards.main(cut(local, url)) == 0
    assert sum(trouble.times(name, "PUT") for name in there) == 0
    files = [path for path in (local / "shards").rglob("*") if path.is_file()]
    assert any_bucket.objects() == {
        f"killed/{path.relative_to(local / 'shards')}": path.read_bytes() for path in files
    }


@pytest.mark.slow
@pytest.mark.parametrize("any_bucket", ["swift"], indirect=True)
def test_a_wrong_key_is_refused_before_the_work(local, any_bucket, monkeypatch, capsys):
    """Which moto cannot show: it takes any."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
    assert make_shards.main(cut(local, f"{any_bucket.url}/refused")) == 2
    assert "the store refuses (403" in capsys.readouterr().err
    assert any_bucket.objects() == {}


@pytest.mark.slow
def test_a_web_server_that_fails_now_and_then(local, reference, tmp_path):
    with WebFolder(local / "shards") as web, Trouble(web.port) as trouble:
        trouble.plan(".tar", "503", "cut", "short", "", "refuse")
        run = tmp_path / "run"
        program = train(trouble.url, tmp_path, run, "data.cache_gigabytes=0.0002")
        assert program.finish() == [0], program.output()
    assert_same_figures(run, reference)
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    assert 0 < kept <= 200_000


@pytest.mark.slow
def test_a_shard_that_is_lost_stops_the_run_by_its_name(local, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(local / "shards", shards)
    for path in (shards / "train").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:-512])
    with WebFolder(shards) as web, Trouble(web.port) as trouble:
        trouble.plan(".tar", "404*")
        program = train(trouble.url, tmp_path, tmp_path / "run")
        assert program.finish() == [2]
    text = program.output()
    assert "Traceback" not in text
    (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert "/train/shard-" in error
    assert "does not exist" in error


@pytest.mark.slow
def test_a_run_that_skips_goes_on(local, reference, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(local / "shards", shards)
    for path in sorted((shards / "train").glob("*.tar"))[::2]:
        content = bytearray(path.read_bytes())
        content[600] ^= 1
        path.write_bytes(content)
    program = train(str(shards), tmp_path, tmp_path / "run", "data.on_corrupt=skip")
    assert program.finish() == [0], program.output()
    assert "left out, as data.on_corrupt=skip asks: " in program.output()
    losses = [record["loss"] for record in metrics(tmp_path / "run")]
    assert len(losses) == STEPS
    assert losses != [record["loss"] for record in metrics(reference)]
