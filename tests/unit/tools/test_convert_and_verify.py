"""`tools.convert_checkpoint` and `tools.verify_export` on a checkpoint of two tensor ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.format import Manifest, tensor_file, write_manifest
from megatron_hyena.checkpoint.tensors import write_tensors
from megatron_hyena.layers.parameter import cut_of
from tests.oracles.drawing import disturb
from tools.convert_checkpoint import main as convert
from tools.verify_export import main as verify

RANKS = 2


@pytest.fixture
def saved(tmp_path: Path) -> tuple[HyenaGLT, Path]:
    """A model, and a checkpoint folder holding it in two parts."""
    config = HyenaGLTConfig(pattern="SMLA", hidden_size=32, num_heads=4)
    model = HyenaGLT(config, seed=5).eval()
    disturb(model)  # a fresh `M` has taps near zero, so its decay would hardly matter
    folder = tmp_path / "run" / "checkpoints" / "step_00000007"
    folder.mkdir(parents=True)
    parameters = dict(model.named_parameters())
    files = {}
    for rank in range(RANKS):
        parts = {f"weight/{n}": cut_of(p).take(p, rank, RANKS) for n, p in parameters.items()}
        name = tensor_file(rank, RANKS)
        files[name] = write_tensors(folder / name, parts)
    cuts = {n: cut_of(p) for n, p in parameters.items()}
    described = {
        n: {"shape": list(c.shape), "dim": c.dim, "blocks": c.blocks} for n, c in cuts.items()
    }
    write_manifest(folder, Manifest(7, 56, asdict(config), {}, RANKS, described, files))
    return model, tmp_path / "run"


def test_native_folder_holds_the_joined_weights(
    saved: tuple[HyenaGLT, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, run = saved
    assert convert(["--from", str(run), "--to", "native", "--output", str(tmp_path / "out")]) == 0
    assert "step_00000007" in capsys.readouterr().out
    loaded = HyenaGLT.from_pretrained(tmp_path / "out")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(loaded.named_parameters())[name]), name


def test_verify_accepts_the_export_and_refuses_another_model(
    saved: tuple[HyenaGLT, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    _, run = saved
    export = tmp_path / "hf"
    assert convert(["--from", str(run), "--to", "hf", "--output", str(export)]) == 0
    arguments = ["--run", str(run), "--export", str(export), "--length", "64"]
    assert verify(arguments) == 0
    assert "agrees with the trained model" in capsys.readouterr().out
    # The same weights under another decay are another model.
    values = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(values | {"mr_decay": "weak"}))
    assert verify(arguments) == 1
    assert "DIFFERS FROM" in capsys.readouterr().out


def test_a_folder_without_a_checkpoint_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(["--from", str(tmp_path), "--to", "hf", "--output", str(tmp_path / "x")]) == 2
    assert "no complete checkpoint there" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert verify(["--run", str(tmp_path), "--export", str(tmp_path)]) == 2
    assert "give a folder of --to hf" in capsys.readouterr().err


def test_a_run_becomes_another_programs_file_at_once(
    saved: tuple[HyenaGLT, Path], tmp_path: Path
) -> None:
    """The same as by way of a native folder, whose tensors are whole."""
    model, run = saved
    model.save_pretrained(tmp_path / "native")
    lossy = ["--to", "vortex", "--allow-lossy", "norm_eps"]
    for source, name in ((run, "run"), (tmp_path / "native", "native")):
        output = ["--output", str(tmp_path / f"{name}.pt")]
        assert convert(["--from", str(source), *lossy, *output]) == 0
    found, wanted = (torch.load(tmp_path / f"{name}.pt") for name in ("run", "native"))
    assert found.keys() == wanted.keys() and len(found) > 40
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
