"""A checkpoint records the lengths of its run, and no run of other lengths goes on from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_hyena.checkpoint.format import (
    MANIFEST,
    Manifest,
    read_manifest,
    step_folder,
    write_manifest,
)
from megatron_hyena.checkpoint.start import find_start
from megatron_hyena.config import Config, config_dict, length_schedule, load_config
from megatron_hyena.errors import UserError

GROWING = ("curriculum.initial_length=128", "curriculum.growth=doubling", "curriculum.steps=30")


def configure(folder: Path, *keys: str) -> Config:
    return load_config(None, [f"run.output_dir={folder}", *keys])


def save(folder: Path, *keys: str) -> Path:
    """What `engine.saving` writes, without tensors."""
    config = configure(folder, *keys)
    path = folder / "checkpoints" / step_folder(5)
    path.mkdir(parents=True)
    values = config_dict(config)
    lengths = [list(stage) for stage in length_schedule(config).stages]
    write_manifest(path, Manifest(5, 40, values["model"], values, 1, {}, {}, lengths=lengths))
    return path


def test_the_manifest_says_which_step_has_which_length(tmp_path):
    manifest = read_manifest(save(tmp_path, *GROWING))
    assert manifest.lengths == [[0, 128], [10, 256], [20, 512], [30, 1024]]


@pytest.mark.parametrize(
    "keys",
    [
        GROWING,
        (*GROWING, "train.steps=50"),
        (*GROWING, "parallel.context=4"),
        (*GROWING, "parallel.tensor=2", "parallel.sequence=true"),
        # Half of the steps, said in another way.
        (*GROWING[:2], "train.steps=60"),
        (*GROWING[:2], "train.steps=61"),
    ],
)
def test_the_same_lengths_go_on(tmp_path, keys):
    save(tmp_path, *GROWING)
    found = find_start(configure(tmp_path, *keys))
    assert found is not None and found.manifest.step == 5


SAVED = "128 from step 1, 256 from step 11, 512 from step 21, 1,024 from step 31"


@pytest.mark.parametrize(
    ("keys", "now"),
    [
        (("curriculum.initial_length=128", "curriculum.steps=30"), "128 from step 1, 256 from st"),
        ((*GROWING[:2], "curriculum.steps=60"), "128 from step 1, 256 from step 21"),
        (("curriculum.initial_length=256", *GROWING[1:]), "256 from step 1, 512 from step 16"),
        ((*GROWING[:2], "train.steps=62"), "128 from step 1, 256 from step 12"),
        ((), "1,024 from step 1; set"),
    ],
)
def test_other_lengths_are_refused(tmp_path, keys, now):
    folder = save(tmp_path, *GROWING)
    config = configure(tmp_path, *keys)
    with pytest.raises(UserError) as caught:
        find_start(config)
    text = str(caught.value)
    assert text.startswith(f"{folder}: saved in a run of sequence lengths {SAVED}, now {now}")
    assert text.endswith(
        "; set curriculum.initial_length=128, curriculum.growth=doubling and "
        "curriculum.steps=30 or start another run.output_dir"
    )
    assert "\n" not in text


def test_the_sentence_names_keys_that_work(tmp_path):
    """A curriculum of half of the steps, gone on with for more: the sentence says how."""
    save(tmp_path, "curriculum.initial_length=256", "train.steps=100")
    more = ("curriculum.initial_length=256", "train.steps=200")
    with pytest.raises(UserError) as caught:
        find_start(configure(tmp_path, *more))
    keys = str(caught.value).partition("; set ")[2].partition(" or start")[0]
    fixed = keys.replace(" and ", ", ").split(", ")
    assert find_start(configure(tmp_path, *fixed, "train.steps=200")) is not None


@pytest.mark.parametrize("forgotten", ["lengths", "curriculum"])
def test_a_checkpoint_without_a_curriculum_has_one_length(tmp_path, forgotten):
    """Also one of a version that knew of none."""
    path = save(tmp_path) / MANIFEST
    values = json.loads(path.read_text())
    del values["lengths"]
    if forgotten == "curriculum":
        del values["run"]["curriculum"]
    path.write_text(json.dumps(values))
    assert find_start(configure(tmp_path)) is not None
    with pytest.raises(UserError) as caught:
        find_start(configure(tmp_path, *GROWING))
    assert f"saved in a run of sequence lengths 1,024 from step 1, now {SAVED}; set " in str(
        caught.value
    )
    assert "set curriculum.initial_length=0 and curriculum.steps=0 or" in str(caught.value)
