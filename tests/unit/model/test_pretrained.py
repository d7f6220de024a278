"""`save_pretrained` and `from_pretrained`: the same model back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_hyena import HyenaGLT
from megatron_hyena.errors import UserError
from tests.oracles.drawing import disturb, draw_bytes, small_config


@pytest.fixture
def model() -> HyenaGLT:
    made = HyenaGLT(small_config("SMLHGAW", hyena_output_gate=True))
    disturb(made)
    return made


@pytest.fixture
def folder(model: HyenaGLT, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_round_trip_is_bit_equal(model: HyenaGLT, folder: Path) -> None:
    again, ids = HyenaGLT.from_pretrained(folder), draw_bytes(2, 50)
    assert again.config == model.config
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_untied_head_is_saved(tmp_path: Path) -> None:
    model = HyenaGLT(small_config("S", tie_embeddings=False))
    model.save_pretrained(tmp_path)
    assert torch.equal(HyenaGLT.from_pretrained(tmp_path).head.weight, model.head.weight)


def test_saving_again_replaces_the_files_whole(model: HyenaGLT, folder: Path) -> None:
    disturb(model, seed=1)
    model.save_pretrained(folder)
    ids = draw_bytes(1, 20)
    assert torch.equal(HyenaGLT.from_pretrained(folder)(ids).logits, model(ids).logits)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        HyenaGLT.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


def test_missing_and_surplus_tensors_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["stranger"] = tensors.pop("blocks.0.mixer.taps")
    save_file(tensors, path)
    message = refused(folder)
    assert "blocks.0.mixer.taps" in message
    assert "stranger" in message


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    """Also one that broadcasting would accept."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["final_norm.weight"] = torch.ones(1)
    save_file(tensors, path)
    message = refused(folder)
    assert "final_norm.weight" in message
    assert "[1]" in message
    assert "[8]" in message


def test_a_damaged_weights_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refused(folder)


def test_a_damaged_configuration_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text("{")
    assert "config.json" in refused(folder)
    path.write_text(json.dumps({**values, "hidden_sise": 3}))
    assert "hidden_sise" in refused(folder)
    path.write_text("[]")
    assert "config.json" in refused(folder)
