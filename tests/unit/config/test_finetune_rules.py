"""What a fine-tuning configuration is, and what is refused when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_hyena.config.finetune import (
    FinetuneConfig,
    HyenaGLTConfig,
    check_finetune,
    load_finetune,
    run_config,
)
from megatron_hyena.errors import UserError
from megatron_hyena.yaml_sections import plain_values

RUNS = sorted((Path(__file__).parents[3] / "configs" / "run").glob("finetune_*.yaml"))
GOOD = {"finetune": {"from": "runs/x"}, "task": {"table": "t.tsv"}}


def load(tmp_path, values, *overrides) -> FinetuneConfig:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_finetune(path, overrides)


def test_words_of_python_are_keys_without_the_underscore(tmp_path):
    config = load(tmp_path, GOOD, "finetune.from=runs/y", "task.head.pooling=last")
    assert config.finetune.from_ == "runs/y" and config.task.head.pooling == "last"
    assert plain_values(config)["finetune"]["from"] == "runs/y"
    assert load(tmp_path, plain_values(config)) == config
    with pytest.raises(UserError, match=r"unknown key finetune.form; did you mean finetune.from\?"):
        load(tmp_path, GOOD, "finetune.form=x")


def test_several_tasks(tmp_path):
    values: dict = {"finetune": {"from": "x"}, "tasks": [{"name": "a", "table": "a.tsv"}]}
    values["tasks"].append({"name": "b", "kind": "regression", "table": "b.csv"})
    config = load(tmp_path, values)
    assert [task.name for task in config.all_tasks] == ["a", "b"]
    assert load(tmp_path, plain_values(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finetune": {}}, "finetune.from is empty"),
        (
            {"finetune": {"from": "x", "method": "lor"}},
            "finetune.method='lor' is unknown; use full",
        ),
        ({"finetune": {"from": "x", "random": True, "heads": "keep"}}, "set one"),
        ({"finetune": {"from": "x", "metric": "spearman"}}, "of a classification='spearman' is"),
        ({"task": {}}, "task 'task': has neither table, store nor sha"),
        ({"task": {"table": "t", "store": "s"}}, "has table and store; name the one"),
        (
            {"task": {"table": "t", "valid_contigs": ["c"]}},
            "table has labels and splits of its own",
        ),
        ({"task": {"store": "s"}}, "kind=classification has a label per sequence"),
        ({"task": {"table": "t", "kind": "regression", "class_weights": "balanced"}}, "no classes"),
        ({"task": {"table": "t", "label_column": "a,b"}}, "label_column=a,b is several"),
        ({"task": {"table": "t", "name": "a b"}}, "a name needs a letter and has no dot"),
        ({"task": {"table": "t", "features": ["introns"]}}, "features='introns' is unknown"),
        (
            {"task": {"table": "t", "head": {"dropout": 1.5}}},
            r"head.dropout=1.5 is not in \[0, 1\)",
        ),
        ({"tasks": [{"table": "a"}]}, "task and tasks are both given"),
        ({"task": {}, "tasks": [{"table": "a"}, {"table": "b"}]}, "two tasks are named 'task'"),
        ({"tasks": [{"tabel": "a"}]}, "tabel"),
        ({"data": {"valid_fraction": 0.6, "test_fraction": 0.4}}, "leave something to train on"),
        ({"data": {"duplicates": "no"}}, "data.duplicates='no' is unknown"),
    ],
)
def test_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, GOOD | change)


@pytest.mark.parametrize(
    ("override", "model", "ranks", "message"),
    [
        ("parallel.tensor=2", {}, 2, "finetune.method=lora adds to whole matrices, but"),
        ("parallel.zero_stage=3", {}, 1, "set parallel.tensor=1 and parallel.zero_stage to 0, 1"),
        ("parallel.context=3", {}, 4, "4 ranks cannot be split into groups"),
        ("run.seed=1", {"pattern": "(S)", "merger": "precomputed"}, 1, "labelled sequences do not"),
        ("data.type=rna", {}, 1, "the model knows no types of sequence"),
        (
            "data.sequence_length=99",
            {"pattern": "H", "max_sequence_length": 64},
            1,
            "exceeds model",
        ),
    ],
)
def test_what_no_layout_or_model_can_do(tmp_path, override, model, ranks, message):
    config = load(tmp_path, GOOD, "finetune.method=lora", override)
    with pytest.raises(UserError, match=message):
        check_finetune(config, HyenaGLTConfig(**model), ranks)


def test_the_type_of_the_sequences_is_taken_for_granted(tmp_path):
    model = HyenaGLTConfig(type_embedding="dna")
    for override, wanted in (("run.seed=0", "dna"), ("data.type=rna", "rna")):
        config = load(tmp_path, GOOD, override)
        check_finetune(config, model, 1)
        assert run_config(config, model).model.type_embedding == wanted


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_of_the_repository_loads_and_comes_back(tmp_path, path):
    config = load_finetune(path)
    assert load(tmp_path, plain_values(config)) == config
    check_finetune(config, HyenaGLTConfig(), 1)


def test_a_masked_model_is_fine_tuned_too(tmp_path):
    check_finetune(load(tmp_path, GOOD), HyenaGLTConfig(causal=False), 1)
