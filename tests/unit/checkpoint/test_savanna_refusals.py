"""savanna's folders that cannot be read or written: one sentence, which names the file or key."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import yaml

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.exchange.formats import Options, convert
from megatron_hyena.checkpoint.exchange.inert import load_inert
from megatron_hyena.checkpoint.exchange.savanna_files import Ranks
from megatron_hyena.errors import UserError
from tests.oracles.savanna_folder import Model, draw, write_folder
from tools.convert_checkpoint import main

STATES = "mp_rank_{:02d}_model_states.pt"


def refused(folder: Path, match: str, options: Options | None = None) -> None:
    with pytest.raises(UserError, match=match):
        convert(folder, "native", folder.parent / "ours", options or Options())
    assert not (folder.parent / "ours").exists()


@pytest.mark.parametrize(
    ("stage", "missing", "match"),
    (
        (1, "mp_rank_00_model_states.pt", r"mp_rank_00_model_states.pt: not there.* of 2 ranks"),
        (1, "mp_rank_01_model_states.pt", r"mp_rank_01_model_states.pt: not there.* of 2 ranks"),
        (3, "zero_pp_rank_1_mp_rank_01_model_states.pt", r"rank_1_mp_rank_01_model.*not there"),
        (3, "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", r"rank_1_mp_rank_00_optim.*not ther"),
        (1, "configs/model.yml", r"configs/model.yml: not found.*--settings"),
    ),
)
def test_a_missing_file_is_named(stage: int, missing: str, match: str, tmp_path: Path) -> None:
    model = Model(pattern="SM", ranks=2)
    folder = write_folder(tmp_path / "f", model, draw(model), stage=stage, data=2)
    (folder / "global_step7" / missing).unlink()
    refused(folder, match)


def test_a_damaged_or_foreign_file_is_named(tmp_path: Path) -> None:
    model = Model(pattern="SM", ranks=2)
    folder = write_folder(tmp_path / "f", model, draw(model))
    path = folder / "global_step7" / STATES.format(1)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(folder, r"mp_rank_01_model_states.pt: damaged .*copy it again")
    torch.save({"weights": torch.zeros(3)}, path)
    refused(folder, r"mp_rank_01_model_states.pt: holds no module states")


def test_ranks_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    folders = []
    for name, pattern in (("a", "SM"), ("b", "SA")):
        model = Model(pattern=pattern, ranks=2)
        folders.append(write_folder(tmp_path / name, model, draw(model)) / "global_step7")
    (folders[1] / STATES.format(1)).replace(folders[0] / STATES.format(1))
    refused(tmp_path / "a", r"only one of tensor ranks 0 and 1 has: sequential.3")


@pytest.mark.parametrize("stage", (1, 3))
def test_states_that_are_no_tensors_of_the_model_are_named(stage: int, tmp_path: Path) -> None:
    model = Model(pattern="SM")
    folder = write_folder(tmp_path / "f", model, draw(model), stage=stage)
    (path,) = (folder / "global_step7").glob("*_model_states.pt")
    state = load_inert(path)
    state["module"]["sequential.2.mixer.dense_projection._extra_state"] = io.BytesIO(b"fp8")
    _replace(path, state)
    done = convert(folder, "native", tmp_path / "fp8", Options())
    assert any("scales of FP8 passes (1)" in note for note in done.notes)
    state["module"]["sequential.2.counter"] = 7
    _replace(path, state)
    refused(folder, r"1 states of .*sequential.2.counter\).*--allow-lossy unused")
    convert(folder, "native", tmp_path / "ours", Options(allow_lossy=("unused",)))


def _replace(path: Path, state: object) -> None:
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def test_the_program_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Model(pattern="SM", ranks=2)
    folder = write_folder(tmp_path / "f", model, draw(model), masters=True)
    for path in (folder / "global_step7").glob("*_optim_states.pt"):
        path.unlink()
    way = ["--from", str(folder), "--to", "savanna", "--output", str(tmp_path / "g")]
    assert main([*way, "--tensor-ranks", "2", "--zero-stage", "3", "--data-ranks", "2"]) == 0
    said = capsys.readouterr().out
    assert "tensors are the modules' own, in bf16" in said
    assert len(list((tmp_path / "g" / "global_step0").glob("*.pt"))) == 8
    assert main([*way, "--tensor-ranks", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: --tensor-ranks 3 does not divide")


def test_copies_that_differ_are_a_loss_with_a_name(tmp_path: Path) -> None:
    model = Model(pattern="SM", ranks=2)
    folder = write_folder(tmp_path / "f", model, draw(model))
    path = folder / "global_step7" / STATES.format(1)
    state = load_inert(path)
    changed = state["module"]["sequential.2.mixer.dense.bias"] + 1
    state["module"]["sequential.2.mixer.dense.bias"] = changed
    _replace(path, state)
    refused(folder, r"other copies \(sequential.2.mixer.dense.bias\).*--allow-lossy replicas")
    done = convert(folder, "native", tmp_path / "ours", Options(allow_lossy=("replicas",)))
    assert any("replicas" in note for note in done.notes)


@pytest.mark.parametrize(
    ("changes", "match"),
    (
        ({"operator-config": [[["hyena_xx"], 2]]}, r"has 'hyena_xx', for which there is no layer"),
        ({"operator-config": [[["hyena_se"], 3]]}, r"has 3 blocks and num_layers=2"),
        ({"operator-config": None}, r"key operator_config is missing"),
        ({"num_attention_heads": None}, r"key num_attention_heads is missing"),
        ({"norm": None}, r"norm='layernorm' \(savanna's default: the key is missing\)"),
        ({"hyena_medium_filter_cls": "implicit"}, r"hyena_medium_filter_cls='implicit'"),
        ({"gpt_j_residual": True}, r"gpt_j_residual=True is a savanna model that this"),
        ({"use_fp8_norm": True}, r"use_fp8_norm=True, but norms are called .scale"),
        ({"gating_act": "silu"}, r"blocks 0 to 0 have gelu and all from block 1, .*silu"),
        ({"operator-config": [[["hyena_mr", "hyena_se"], 1]]}, r"a model of these settings has"),
        ({"hyena_mr_len": "many"}, r"hyena_mr_len='many' must be a whole number"),
    ),
)
def test_settings_without_a_form_are_named(
    changes: dict[str, object], match: str, tmp_path: Path
) -> None:
    model = Model(pattern="SM")
    folder = write_folder(tmp_path / "f", model, draw(model))
    values = {k: v for k, v in (model.config() | changes).items() if v is not None}
    (folder / "global_step7/configs/model.yml").write_text(yaml.safe_dump(values))
    refused(folder, match)


def test_other_positions_and_frequencies_are_told(tmp_path: Path) -> None:
    model = Model(pattern="AS")
    tensors = draw(model)
    tensors["sequential.2.mixer.rotary_emb.inv_freq"][1] *= 1.01
    folder = write_folder(tmp_path / "f", model, tensors)
    refused(folder, r"sequential.2.mixer.rotary_emb.inv_freq, which differ .*--allow-lossy inv_fre")
    settings = folder / "global_step7/configs/model.yml"
    settings.write_text(yaml.safe_dump(model.config() | {"pos_emb": "alibi"}))
    refused(folder, r"pos_emb='alibi' is not rotary")


def test_models_that_savanna_cannot_hold_are_named(tmp_path: Path) -> None:
    base = {"hidden_size": 32, "num_heads": 4, "vocab_size": 64}
    for fields, ranks, match in (
        ({"pattern": "S(A)S"}, Ranks(), r"savanna cannot hold 1 merged stage"),
        ({"pattern": "SH"}, Ranks(), r"savanna has no layer like H"),
        ({"pattern": "SL", "li_poles": "complex"}, Ranks(), r"model.li_poles=complex"),
        ({"pattern": "SL", "projection_bias": True}, Ranks(), r"model.projection_bias=true"),
        ({"pattern": "S", "ffn_hidden_size": 40}, Ranks(), r"MLPs of 85 channels or more, not"),
        ({"pattern": "SSM", "mlp_activation": "evo2"}, Ranks(), r"not the second block"),
        ({"pattern": "S"}, Ranks(tensor=3), r"--tensor-ranks 3 does not divide model.vocab_size"),
    ):
        HyenaGLT(HyenaGLTConfig(**(base | fields))).save_pretrained(tmp_path / "ours")
        with pytest.raises(UserError, match=match):
            convert(tmp_path / "ours", "savanna", tmp_path / "theirs", Options(ranks=ranks))
        assert not (tmp_path / "theirs").exists()
