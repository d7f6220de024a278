"""The real program: it learns two tasks, goes on in another layout, and keeps the best."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.finetune.folder import load_task_model
from pretrain.finetune import main
from tests.smoke.program import Program, metrics

pytestmark = [pytest.mark.smoke, pytest.mark.parallel]

STEPS, STOP = 40, 16
CONFIG = """
finetune: {{from: {folder}/model, heads: new, balance: uncertainty, temperature: 2.0}}
tasks:
- {{name: motif, table: {folder}/motif.csv, class_weights: balanced, head: {{pooling: max}}}}
- {{name: share, kind: regression, table: {folder}/share.tsv, label_column: gc}}
data: {{sequence_length: 48, duplicates: drop}}
train: {{steps: 40, global_batch_size: 16, micro_batch_size: 8, valid_every: 8}}
optim: {{lr: 1.0e-2, min_lr: 1.0e-3, warmup_steps: 4}}
log: {{every: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small model, two tables and a configuration."""
    path = tmp_path_factory.mktemp("finetune")
    config = HyenaGLTConfig(
        pattern="SA", hidden_size=32, num_heads=2, num_filter_groups=4, vocab_size=128,
        init_std=0.1,
    )  # fmt: skip
    HyenaGLT(config, seed=2).save_pretrained(path / "model")
    generator = np.random.default_rng(0)
    rows = [["sequence", "label"]]
    shares = ["sequence\tgc"]
    for number in range(240):
        letters = generator.choice(list("ACGT"), int(generator.integers(24, 48)))
        if number % 3 == 0:
            letters[4:10] = list("TATAAT")
        text = "".join(letters)
        rows.append([text, "yes" if "TATAAT" in text else "no"])
        shares.append(f"{text}\t{np.isin(letters, ['G', 'C']).mean():.3f}")
    with (path / "motif.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (path / "share.tsv").write_text("\n".join(shares) + "\n")
    (path / "run.yaml").write_text(CONFIG.format(folder=path))
    return path


def run(folder: Path, ranks: int, name: str, *overrides: str) -> str:
    """Start the program to its end; returns what it said."""
    arguments = [str(folder / "run.yaml"), f"run.output_dir={folder / name}", *overrides]
    program = Program(ranks, arguments, folder / f"log_{name}", module="pretrain.finetune")
    assert program.finish() == [0] * ranks, program.output()
    return program.output()


@pytest.fixture(scope="module")
def tuned(folder) -> Path:
    """A run that was stopped on one rank, and ended on two that share every layer."""
    said = run(folder, 1, "run", f"train.stop_after={STOP}")
    assert f"stopped after step {STOP} of {STEPS}, saved" in said
    assert not (folder / "run" / "summary.json").exists()
    said = run(folder, 2, "run", "parallel.tensor=2", "parallel.sequence=true")
    assert "resuming from" in said
    return folder / "run"


def test_two_tasks_from_start_to_best(tuned):
    records = metrics(tuned)
    assert [r["step"] for r in records] == [*range(1, STEPS + 1)]
    assert np.isfinite([r["loss"] for r in records]).all()
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["test"]["motif/mcc"] > 0.5 and summary["test"]["share/spearman"] > 0.5
    assert summary["layout"]["tensor"] == 2 and summary["steps"] == STEPS
    scores = {r["step"]: r["score"] for r in metrics(tuned, "validation.jsonl")}
    assert list(scores) == [8, 16, 24, 32, 40]
    assert summary["best_score"] == max(scores.values()) == scores[summary["best_step"]]
    assert json.loads((tuned / "best" / "tasks.json").read_text())["step"] == summary["best_step"]
    check_predictions(tuned, summary)


def check_predictions(folder: Path, summary: dict) -> None:
    """The table of the test split is what the saved best model tells, and has the accuracy."""
    with (folder / "test_predictions.motif.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert right == pytest.approx(summary["test"]["motif/accuracy"])
    model, classes = load_task_model(folder / "best")
    assert classes["motif"] == ("no", "yes")
    with (folder.parent / "motif.csv").open() as file:
        sequences = [row["sequence"] for row in csv.DictReader(file)]
    model.begin("motif")
    for row in rows[:5]:
        letters = sequences[int(row["name"].removeprefix("row ")) - 1]
        with torch.no_grad():
            told = model.predictions(torch.tensor([[*letters.encode()]])).softmax(-1)
        assert float(row["p_yes"]) == pytest.approx(told[0, 1].item(), abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["finetune.from=nowhere"], "finetune.from=nowhere: neither a run folder or checkpoint"),
        (["finetune.heads=keep"], "has no heads (tasks.json); give the folder best"),
        (["finetune.method=lora", "parallel.zero_stage=3"], "finetune.method=lora adds to whole"),
        (["data.sequence_length=20"], "bases, and data.sequence_length=20; raise it"),
        (["finetune.method=half"], "finetune.method='half' is unknown"),
        (["train.global_batch_size=3"], "train.global_batch_size = 3 is not a multiple"),
    ],
)
def test_mistakes_are_told_before_anything_begins(folder, tmp_path, capsys, overrides, message):
    arguments = [str(folder / "run.yaml"), f"run.output_dir={tmp_path / 'run'}", *overrides]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_as_another(folder, tuned, capsys):
    arguments = [str(folder / "run.yaml"), f"run.output_dir={tuned}"]
    assert main([*arguments, "finetune.temperature=1.0"]) == 2
    assert "begun with another section 'finetune'" in capsys.readouterr().err


def test_a_dry_run_describes_the_data(folder, capsys):
    assert main([str(folder / "run.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "task motif:" in said and "in training no " in said and "task share:" in said
