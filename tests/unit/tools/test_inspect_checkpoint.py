"""`tools.inspect_checkpoint`: what it prints is what was saved, and what it promises can load."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from megatron_hyena.checkpoint.format import (
    MANIFEST,
    Manifest,
    read_manifest,
    step_folder,
    tensor_file,
    write_manifest,
)
from megatron_hyena.config import Config, check_layout, config_dict, load_config
from megatron_hyena.errors import UserError
from tools.inspect_checkpoint import main, possible_tensor_sizes

REPOSITORY = Path(__file__).parents[3]
PARAMETERS: dict[str, dict[str, Any]] = {
    "embedding.weight": {"shape": [256, 96], "dim": 0, "blocks": 1},
    "norm.weight": {"shape": [96], "dim": None, "blocks": 1},
    "mlp.gate": {"shape": [512, 96], "dim": 0, "blocks": 2},
}
KINDS = ("weight", "exp_avg", "exp_avg_sq")
MODEL = ["model.pattern=SLHAW", "model.hidden_size=96", "model.num_heads=12"]
RUN = [*MODEL, "parallel.tensor=2", "parallel.sequence=true", "parallel.zero_stage=3"]
RUN += ["train.global_batch_size=12", "train.micro_batch_size=2", "train.steps=1000"]
RUN += ["run.seed=7", "data.sequence_length=500", "parallel.recompute=SA", "run.output_dir=runs/x"]


def save(folder: Path, step: int, config: Config) -> Path:
    """A checkpoint of three small parameters in a file for each tensor rank."""
    path, ranks = folder / step_folder(step), config.parallel.tensor
    path.mkdir(parents=True)
    for rank in range(ranks):
        parts = {"other/tensor": np.zeros(1, np.float16)}
        for name, described in PARAMETERS.items():
            shape = list(described["shape"])
            if described["dim"] is not None:
                shape[described["dim"]] //= ranks
            for kind in KINDS:
                parts[f"{kind}/{name}"] = np.zeros(shape, np.float32)
        save_file(parts, path / tensor_file(rank, ranks))
    files = {p.name: p.stat().st_size for p in sorted(path.iterdir())}
    values, done = config_dict(config), step * config.train.global_batch_size
    write_manifest(path, Manifest(step, done, values["model"], values, ranks, PARAMETERS, files))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the checkpoints of two steps."""
    config = load_config(None, RUN)
    for step in (40, 100):
        save(tmp_path / "run" / "checkpoints", step, config)
    return tmp_path / "run"


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    assert main([str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def rows(text: str) -> list[tuple[str, str]]:
    return [(r[2:14].strip(), r[14:]) for r in text.splitlines() if r.startswith("  ")]


def test_what_a_checkpoint_holds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, run)
    assert text.startswith(f"{run}/checkpoints/step_00000100\n")
    found = rows(text)
    size = (run / "checkpoints/step_00000100" / tensor_file(0, 2)).stat().st_size
    expected = [
        ("step", "100 of 1,000"),
        ("consumed", "1,200 sequences, 600,000 tokens"),
        ("run", "runs/x"),
        ("model", "SLHAW: 5 blocks, width 96, 73,824 parameters in 3 tensors"),
        (
            "saved with",
            "tensor 2 x context 1, sequence parallel on, ZeRO stage 3, recompute SA",
        ),
        ("file", f"tensor_00_of_02.safetensors  {size:,} bytes"),
        ("file", f"tensor_01_of_02.safetensors  {size:,} bytes"),
        ("state", "weights (F32)"),
        ("state", "Adam's first moments (F32)"),
        ("state", "its second moments (F32)"),
        ("state", "place in the schedule of the learning rate: step 100"),
        (
            "state",
            "place in the data: sequence 1,200 of the order of run.seed = 7; "
            "there is no other random state",
        ),
    ]
    assert [row for row in found if row in expected] == expected
    assert "norm.weight" not in text


def test_a_curriculum_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["curriculum.initial_length=100", "curriculum.steps=80"]
    path = save(tmp_path, 40, load_config(None, [*RUN, *lengths]))
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["lengths"] = [[0, 100], [80, 500]]
    (path / MANIFEST).write_text(json.dumps(manifest))
    found = rows(shown(capsys, path))
    assert (
        "state",
        "sequence length of the next step: 100 (of 100 from step 1, 500 from step 81)",
    ) in found
    assert (
        "context",
        "1 to 100 ranks with context (x tensor, with parallel.sequence) dividing 100, by kind of "
        "layer:",
    ) in found
    assert (
        "unchanged",
        "the model, train.global_batch_size = 12, data.sequence_length = 500, the lengths of the "
        "curriculum",
    ) in found


def test_which_layouts_can_load_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(shown(capsys, run).partition("can be loaded with")[2])
    assert found == [
        # 96 channels, 6 groups, 12 heads, MLP of 256, 256 token ids
        ("tensor", "1 or 2 ranks, parallel.sequence on or off from 2 on"),
        ("context", "1 to 500 ranks, by kind of layer:"),
        (
            "",
            "S  halo for any number, all_to_all where tensor x context divides "
            "model.hidden_size = 96",
        ),
        (
            "",
            "L  state for any number, all_to_all where tensor x context divides "
            "model.hidden_size = 96",
        ),
        ("", "H  all_to_all where tensor x context divides model.hidden_size = 96"),
        (
            "",
            "A  all_to_all where tensor x context divides model.num_heads = 12, all_gather for "
            "any number",
        ),
        ("", "W  halo for any number"),
        ("data", "1, 2, 3 or 6 ranks with train.micro_batch_size = 2"),
        ("", "1, 2, 3, 4, 6 or 12 ranks with 1"),
        ("ZeRO", "stage 0, 1, 2 or 3; any recomputation"),
        ("unchanged", "the model, train.global_batch_size = 12, data.sequence_length = 500"),
    ]


@pytest.mark.parametrize(
    ("overrides", "sizes"),
    [
        (["model.pattern=L", "model.ffn_hidden_size=96"], [1, 2, 4, 8, 16, 32]),
        (["model.pattern=L", "model.ffn_hidden_size=-1", "model.vocab_size=3"], [1, 3]),
        (["model.pattern=A", "model.num_heads=6", "model.ffn_hidden_size=96"], [1, 2]),
        (["model.pattern=S", "model.num_filter_groups=4", "model.ffn_hidden_size=96"], [1, 2, 4]),
        (["model.pattern=S", "model.num_filter_groups=1"], [1]),
    ],
)
def test_possible_tensor_sizes_are_those_that_pass_the_rules(
    overrides: list[str], sizes: list[int]
) -> None:
    config = load_config(None, ["model.hidden_size=96", *overrides, "parallel.sequence=false"])
    assert possible_tensor_sizes(config) == sizes
    passing = []
    for size in range(1, 100):
        try:
            parallel = replace(config.parallel, tensor=size)
            check_layout(replace(config, parallel=parallel), size)
            passing.append(size)
        except UserError:
            pass
    assert passing == sizes


def test_every_parameter_is_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, run / "checkpoints" / "step_00000040", "--tensors")
    assert "step        40 of 1,000" in text
    listed = text.partition("\nparameters\n")[2].splitlines()
    assert [" ".join(line.split()) for line in listed] == [
        "embedding.weight 256 x 96 F32 cut along dim 0",
        "norm.weight 96 F32 whole",
        "mlp.gate 512 x 96 F32 cut along dim 0 in 2 blocks",
    ]


def test_a_checkpoint_of_a_version_with_fewer_keys_is_read(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "step_00000100" / MANIFEST
    values = json.loads(path.read_text())
    del values["run"]["parallel"]["exchange"], values["run"]["parallel"]["recompute"]
    path.write_text(json.dumps(values))
    assert "ZeRO stage 3, recompute none" in shown(capsys, run)


def test_what_is_not_a_whole_checkpoint_is_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no complete checkpoint there" in refused(capsys, tmp_path)
    folder = run / "checkpoints" / "step_00000100"
    file = folder / tensor_file(1, 2)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert f"{file}: {len(whole) - 1} bytes, {len(whole)} bytes expected" in refused(capsys, run)
    file.write_bytes(b"\xff" * len(whole))
    assert f"{file}: not a file of tensors (" in refused(capsys, run)
    file.unlink()
    assert f"{file}: missing, {len(whole)} bytes expected" in refused(capsys, run)


def test_a_file_that_lacks_a_tensor_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints" / "step_00000100"
    file = folder / tensor_file(1, 2)
    save_file({"weight/norm.weight": np.zeros(96, np.float32)}, file)
    manifest = read_manifest_of(folder)
    write_manifest(folder, replace(manifest, files={file.name: file.stat().st_size}))
    assert f"{file}: exp_avg/embedding.weight is not in it; restore" in refused(capsys, run)


def read_manifest_of(folder: Path) -> Manifest:
    """The manifest as it stands, whatever became of the files."""
    return Manifest(**json.loads((folder / MANIFEST).read_text()))


def test_a_manifest_without_its_run_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints" / "step_00000100"
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, run={}))
    assert f"{folder / MANIFEST}: it lacks the configuration of the run" in refused(capsys, run)
    unknown = {**manifest.run, "train": {**manifest.run["train"], "stpes": 3}}
    write_manifest(folder, replace(manifest, run=unknown))
    message = refused(capsys, run)
    assert f"{folder / MANIFEST}: unknown key train.stpes; did you mean train.steps?" in message


def test_it_starts_without_torch(run: Path) -> None:
    program = """
import sys
from tools.inspect_checkpoint import main
assert main([sys.argv[1], "--tensors"]) == 0
assert not {"torch", "megatron", "deepspeed"} & set(sys.modules), "heavy import"
"""
    subprocess.run(
        [sys.executable, "-c", program, str(run)], check=True, cwd=REPOSITORY, timeout=60
    )
