"""Folders of checkpoints: which count, which go, and what is said of a bad one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from megatron_hyena.checkpoint.format import (
    MANIFEST,
    Manifest,
    check_architecture,
    find_checkpoints,
    read_manifest,
    remove_old,
    resolve_checkpoint,
    step_folder,
    write_manifest,
)
from megatron_hyena.checkpoint.start import check_data, find_start
from megatron_hyena.config import Config, HyenaGLTConfig, config_dict, plain_values
from megatron_hyena.config.sections import CheckpointSection, RunSection
from megatron_hyena.errors import UserError


def make(folder: Path, step: int, config: Config | None = None) -> Path:
    """A checkpoint of one file of ten bytes."""
    path = folder / step_folder(step)
    path.mkdir(parents=True)
    (path / "tensor_00_of_01.safetensors").write_bytes(b"0123456789")
    values = config_dict(config or Config())
    files = {"tensor_00_of_01.safetensors": 10}
    manifest = Manifest(step, 8 * step, values["model"], values, 1, {}, files)
    write_manifest(path, manifest)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_whole_checkpoints_count_in_order_of_steps(tmp_path):
    assert find_checkpoints(tmp_path / "none") == []
    found = [make(tmp_path, step) for step in (100, 20)]
    (tmp_path / "step_00000300").mkdir()  # no manifest
    (tmp_path / ".step_00000400").mkdir()
    (tmp_path / "step_500").mkdir()
    assert find_checkpoints(tmp_path) == found[::-1]


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    path = make(tmp_path, 7)
    manifest = read_manifest(path)
    assert (manifest.step, manifest.sequences, manifest.format) == (7, 56, 1)
    assert manifest.model == config_dict(Config())["model"]


@pytest.mark.parametrize(
    ("keep", "step", "left"),
    [
        (2, 30, [20, 30]),
        (1, 30, [30]),
        (0, 30, [10, 20, 30]),
        (9, 30, [10, 20, 30]),
        (2, 20, [10, 20]),  # 30 belongs to a run that was abandoned
        (1, 10, [10]),
    ],
)
def test_what_is_kept(tmp_path, keep, step, left):
    for made in (10, 20, 30):
        make(tmp_path, made)
    (tmp_path / ".step_00000040").mkdir()
    (tmp_path / "notes").mkdir()
    remove_old(tmp_path, keep, step)
    assert names(tmp_path) == sorted([*map(step_folder, left), "notes"])


def test_a_checkpoint_is_found_from_any_of_its_folders(tmp_path):
    newest = [make(tmp_path / "checkpoints", step) for step in (1, 2)][1]
    for path in (tmp_path, tmp_path / "checkpoints", newest, str(newest)):
        assert resolve_checkpoint(path) == newest
    with pytest.raises(UserError, match=r"none: no complete checkpoint there; give a run folder"):
        resolve_checkpoint(tmp_path / "none")


def spoil_json(path: Path) -> None:
    (path / MANIFEST).write_text("{")


def spoil_fields(path: Path) -> None:
    (path / MANIFEST).write_text('{"step": 1}')


def spoil_format(path: Path) -> None:
    values = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(values | {"format": 9}))


def shorten(path: Path) -> None:
    (path / "tensor_00_of_01.safetensors").write_bytes(b"0123")


def lose(path: Path) -> None:
    (path / "tensor_00_of_01.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_json, "checkpoint.json: not a manifest of this program"),
        (spoil_fields, "checkpoint.json: not a manifest of this program"),
        (spoil_format, "format 9; this version reads format 1"),
        (shorten, "tensor_00_of_01.safetensors: 4 bytes, 10 bytes expected; restore the file"),
        (lose, "tensor_00_of_01.safetensors: missing, 10 bytes expected; restore the file"),
    ],
)
def test_a_spoilt_checkpoint_is_named(tmp_path, spoil, message):
    path = make(tmp_path, 1)
    spoil(path)
    with pytest.raises(UserError, match=message):
        read_manifest(path)


def test_lists_are_compared_as_json_gives_them_back(tmp_path):
    config = HyenaGLTConfig(pattern="G", motifs=("TATAWAW", "CG"))
    saved = json.loads(json.dumps(asdict(config)))
    check_architecture(saved, config, tmp_path)
    with pytest.raises(
        UserError, match=r"model\.motifs: \['TATAWAW', 'CG'\] saved, \['CG'\] asked"
    ):
        check_architecture(saved, replace(config, motifs=("CG",)), tmp_path)


def test_another_architecture_lists_every_field(tmp_path):
    saved = plain_values(HyenaGLTConfig(pattern="SL", hidden_size=64))
    check_architecture(saved, HyenaGLTConfig(pattern="SL", hidden_size=64), tmp_path)
    with pytest.raises(UserError) as caught:
        check_architecture(saved, HyenaGLTConfig(pattern="S", hidden_size=32), tmp_path)
    assert "(model.hidden_size: 64 saved, 32 asked; model.pattern: 'SL' saved, 'S' asked)" in str(
        caught.value
    )
    assert "checkpoint.resume=none" in str(caught.value)
    # Saved by a version that had no such field yet.
    del saved["li_modes"]
    check_architecture(saved, HyenaGLTConfig(pattern="SL", hidden_size=64), tmp_path)
    with pytest.raises(UserError, match=r"model\.li_modes: 16 saved, 8 asked"):
        check_architecture(
            saved, HyenaGLTConfig(pattern="SL", hidden_size=64, li_modes=8), tmp_path
        )


def test_a_run_goes_on_by_itself_on_the_same_data_alone(tmp_path):
    config = Config(run=RunSection(output_dir=str(tmp_path)))
    path = make(tmp_path / "checkpoints", 3, config)
    manifest = json.loads((path / MANIFEST).read_text())
    check_data(find_start(config), config, ["a" * 64])  # saved without a word on the data
    manifest["data"] = [{"folder": "one/train", "digest": "a" * 64}]
    (path / MANIFEST).write_text(json.dumps(manifest))
    start = find_start(config)
    check_data(start, config, ["a" * 64])
    check_data(None, config, ["b" * 64])
    with pytest.raises(UserError, match=r"folder 1 of data.train was one/train \(a{12}…\), now b"):
        check_data(start, config, ["b" * 64])
    with pytest.raises(UserError, match=r"folder 2 of data\.train was nothing, now c"):
        check_data(start, config, ["a" * 64, "c" * 64])
    with pytest.raises(UserError, match=r"folder 1 .*, now nothing, so its place"):
        check_data(start, config, [])
    elsewhere = replace(config, checkpoint=CheckpointSection(resume=str(path)))
    check_data(find_start(elsewhere), elsewhere, ["b" * 64])


def test_where_a_run_starts(tmp_path):
    config = Config(run=RunSection(output_dir=str(tmp_path)))
    assert find_start(config) is None
    older, newer = (make(tmp_path / "checkpoints", step, config) for step in (3, 4))

    def start_of(resume: str):
        return find_start(replace(config, checkpoint=CheckpointSection(resume=resume)))

    assert start_of("none") is None
    assert start_of("auto").folder == newer
    assert start_of(str(older)).manifest.step == 3
    with pytest.raises(UserError, match="no complete checkpoint there"):
        start_of(str(tmp_path / "nowhere"))
    (newer / MANIFEST).unlink()
    assert start_of("auto").folder == older


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "global_batch_size", 16),
        ("data", "sequence_length", 512),
        ("data", "pack", True),
        ("data", "reverse_complement", False),
        ("data", "temperature", 2.0),
        ("run", "seed", 7),
    ],
)
def test_a_place_in_the_data_holds_for_the_same_order_only(tmp_path, section, key, value):
    config = Config(run=RunSection(output_dir=str(tmp_path)))
    path = make(tmp_path / "checkpoints", 3, config)
    changed = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    with pytest.raises(UserError, match=rf"saved with {section}\.{key}=.*, now {value}, so"):
        find_start(changed)
    # Saved by a version that had no such key yet: it has the value it had then, the default.
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["run"][section][key]
    (path / MANIFEST).write_text(json.dumps(manifest))
    assert find_start(config) is not None
    with pytest.raises(UserError, match=rf"now {value}, so"):
        find_start(changed)
