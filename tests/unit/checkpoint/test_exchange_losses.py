"""What a format cannot hold is named with its setting and fix, or listed when it is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.exchange.lossy import NAMES, Losses
from megatron_hyena.checkpoint.exchange.tensors import from_torch
from megatron_hyena.errors import UserError
from tests.peers.converting import of_evo1, of_evo2, settings_of
from tools.convert_checkpoint import main

CAN_BE_LOST: dict[str, tuple[str, HyenaGLTConfig, str]] = {
    "norm_eps": ("vortex", of_evo2(norm_eps_outside=False), "model.norm_eps_outside=true"),
    "activation": ("vortex", of_evo2(mlp_activation="identity"), "model.mlp_activation=identity"),
    "se_skip": ("vortex", of_evo2(se_skip=True), "model.se_skip=true"),
    "complex_poles": ("vortex", of_evo2(li_poles="complex"), "model.li_poles=complex"),
    "type_embedding": ("vortex", of_evo2(type_embedding="dna"), "model.type_embedding=dna"),
    "merging": ("vortex", of_evo2(pattern="S(ML)A", window=16), "merged stage"),
    "window": ("stripedhyena", of_evo1(pattern="LW"), "model.attention_window=512"),
}
CANNOT: list[tuple[str, HyenaGLTConfig, str]] = [
    ("vortex", of_evo2(pattern="SH", max_sequence_length=64), "no layer like H"),
    ("stripedhyena", of_evo1(pattern="SL"), "no layer like S"),
    ("vortex", of_evo2(causal=False), "sees both sides"),
    ("vortex", of_evo2(se_filter_length=128), "model.se_filter_length below 128, not 128"),
    ("vortex", of_evo2(mr_filter_length=64), "model.mr_filter_length at least 128, not 64"),
]


def convert(tmp_path: Path, config: HyenaGLTConfig, to: str, *more: str) -> int:
    HyenaGLT(config).save_pretrained(tmp_path / "ours")
    arguments = ["--from", str(tmp_path / "ours"), "--to", to, *more]
    return main([*arguments, "--output", str(tmp_path / "out.pt")])


@pytest.mark.parametrize("name", CAN_BE_LOST)
def test_a_loss_is_refused_or_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    to, config, setting = CAN_BE_LOST[name]
    assert convert(tmp_path, config, to) == 2
    error = capsys.readouterr().err
    assert setting in error and f"--allow-lossy {name}" in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))
    assert convert(tmp_path, config, to, "--allow-lossy", name) == 0
    assert f"lost ({name})" in capsys.readouterr().out
    listed = json.loads((tmp_path / "out.lossy.json").read_text())
    assert [loss["name"] for loss in listed["lost"]] == [name]
    blocks = settings_of(tmp_path / "out.pt")["num_layers"]
    assert any(n.startswith(f"blocks.{blocks - 1}.") for n in from_torch(tmp_path / "out.pt"))


def test_the_list_goes_when_nothing_is_lost_any_more(tmp_path: Path) -> None:
    lossy = of_evo2(se_skip=True)
    assert convert(tmp_path, lossy, "vortex", "--allow-lossy", "se_skip") == 0
    assert (tmp_path / "out.lossy.json").is_file()
    assert convert(tmp_path, of_evo2(), "vortex", "--allow-lossy", "se_skip") == 0
    assert not (tmp_path / "out.lossy.json").exists()


@pytest.mark.parametrize(("to", "config", "said"), CANNOT)
def test_what_nothing_could_stand_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str, config: HyenaGLTConfig, said: str
) -> None:
    assert convert(tmp_path, config, to, "--allow-lossy", ",".join(NAMES)) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_all_losses_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = of_evo2(se_skip=True, norm_eps_outside=False)
    assert convert(tmp_path, config, "vortex", "--allow-lossy", "norm_eps") == 2
    error = capsys.readouterr().err
    assert "model.se_skip" in error and "--allow-lossy norm_eps,se_skip" in error
    assert "norm_eps_outside" not in error


@pytest.mark.parametrize(("name", "said"), [("se_skp", "'se_skip'"), ("xyzzy", "use any of")])
def test_a_name_of_nothing_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match="nothing that can be lost") as caught:
        Losses("vortex", [name])
    assert said in str(caught.value)


def test_another_suffix_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HyenaGLT(of_evo2()).save_pretrained(tmp_path / "ours")
    arguments: list[Any] = ["--from", str(tmp_path / "ours"), "--to", "vortex"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "ends in .pt" in capsys.readouterr().err


def test_another_vocabulary_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(tmp_path, of_evo2(vocab_size=256), "vortex") == 0
    assert "model.vocab_size=256" in capsys.readouterr().out
