"""A fine-tuned folder gives back its model; what does not fit is refused by name."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.errors import UserError
from megatron_hyena.finetune.folder import load_heads, load_task_model, read_tasks, write_tasks
from megatron_hyena.finetune.source import find_source
from megatron_hyena.finetune.trunk import load_trunk
from megatron_hyena.layers.merging.rate import rate_state
from megatron_hyena.model.task_model import TaskModel, padded_ids
from megatron_hyena.model.tasks import Task

CONFIG = HyenaGLTConfig(pattern="S(A)0.5L", hidden_size=8, num_heads=2, window=4, vocab_size=128)
TASKS = {
    "cells": Task("classification", num_classes=3, pooling="attention"),
    "strength": Task("regression", output_dim=2, target_mean=3.0, target_std=2.0),
}
CLASSES = {"cells": ("a", "b", "c"), "strength": ("x", "y")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = TaskModel(HyenaGLT(CONFIG, seed=4), TASKS, seed=9).eval()
    folder = tmp_path_factory.mktemp("tuned") / "best"
    for name, buffer in rate_state(model.trunk).items():
        buffer.fill_(0.25 + len(name) / 64)
    heads = dict(model.heads.named_parameters())
    for _ in range(2):  # the second replaces the first
        write_tasks(folder, model, model.trunk.stored(), heads, CLASSES, {"step": 7})
    return folder, model


def test_it_comes_back_whole(saved):
    folder, model = saved
    loaded, classes = load_task_model(folder)
    assert classes == CLASSES and loaded.tasks == TASKS
    ids = padded_ids([torch.tensor([*b"ACGTTGCA"]), torch.tensor([*b"GGA"])], multiple=4)
    assert ids.tolist()[1] == [*b"GGA", 1, 1, 1, 1, 1]
    for name in TASKS:
        loaded.begin(name)
        model.begin(name)
        assert torch.equal(loaded.predictions(ids), model.predictions(ids))
    assert json.loads((folder / "tasks.json").read_text())["step"] == 7


def test_its_trunk_is_a_model_like_any_other(saved):
    folder, model = saved
    ids = torch.tensor([[*b"ACGTACGGTA"]])
    wanted = model.trunk(ids).logits
    assert torch.equal(HyenaGLT.from_pretrained(folder).eval()(ids).logits, wanted)
    trunk = HyenaGLT(CONFIG, seed=1).eval()
    run = find_source(str(folder.parent))  # a fine-tuning run means its best
    assert run == find_source(str(folder))
    load_trunk(trunk, run, 0, 1)
    assert torch.equal(trunk(ids).logits, wanted)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"other": TASKS["cells"]}, "has no head 'other', only cells, strength; name the task so"),
        (
            {"cells": TASKS["strength"]},
            "the head 'cells' is of classification, and the task of reg",
        ),
        (
            {"cells": Task("classification", num_classes=2, pooling="attention")},
            r"cells.classifier.weight has shape \[3, 8\], and the task's head \[2, 8\]",
        ),
        ({"strength": Task("regression", output_dim=1)}, r"strength.output.weight has shape \[2"),
    ],
)
def test_a_folder_without_the_asked_head(saved, tasks, message):
    with pytest.raises(UserError, match=message):
        load_heads(TaskModel(HyenaGLT(CONFIG), tasks), saved[0])


def test_folders_that_hold_no_model(tmp_path, saved):
    with pytest.raises(UserError, match=r"neither a run folder or checkpoint .* nor a folder of"):
        find_source(str(tmp_path))
    with pytest.raises(UserError, match=r"has no heads \(tasks.json\); give the folder best"):
        read_tasks(tmp_path)
    (tmp_path / "tasks.json").write_text('{"tasks": {"a": {"kind": "poetry", "classes": []}}}')
    with pytest.raises(UserError, match="task kind 'poetry' is unknown"):
        read_tasks(tmp_path)
    other = HyenaGLT(HyenaGLTConfig(pattern="SS", hidden_size=8, vocab_size=128))
    with pytest.raises(UserError, match="is a parameter of the"):
        load_trunk(other, find_source(str(saved[0])), 0, 1)
