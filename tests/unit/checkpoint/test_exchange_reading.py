"""Files of other programs are told by their contents, and what is wrong with one is named."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from megatron_hyena import HyenaGLT
from megatron_hyena.checkpoint.exchange.formats import recognise
from tests.peers.converting import convert, of_evo1, of_evo2, random_model, settings_of
from tools.convert_checkpoint import main


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    random_model(of_evo2()).save_pretrained(folder / "evo2")
    random_model(of_evo1()).save_pretrained(folder / "evo1")
    convert(folder / "evo2", "vortex", folder / "two.pt")
    convert(folder / "evo1", "stripedhyena", folder / "one.pt")
    convert(folder / "evo1", "stripedhyena", folder / "one-folder")
    convert(folder / "evo2", "hf", folder / "hf")
    return folder


@pytest.fixture
def files(written: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(written, tmp_path / "files")
    return tmp_path / "files"


def refused(source: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    output = source.parent / "refused"
    capsys.readouterr()
    assert main(["--from", str(source), "--to", "native", "--output", str(output), *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not output.exists()
    return error


def change_settings(file: Path, **changes: Any) -> None:
    values = settings_of(file) | changes
    kept = {key: value for key, value in values.items() if value is not None}
    file.with_suffix(".yml").write_text(yaml.safe_dump(kept))


def change_tensors(file: Path, **changes: Any) -> None:
    """`changes`: __ for a dot; None takes a tensor away, a function changes it."""
    tensors: dict[str, Any] = torch.load(file)
    for key, change in changes.items():
        name = key.replace("__", ".")
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name]) if callable(change) else change
    torch.save(tensors, file)


def test_formats_are_told_by_their_contents(written: Path) -> None:
    names = {"evo2": "native", "two.pt": "vortex", "one.pt": "stripedhyena", "hf": "hf"}
    names |= {"one-folder": "stripedhyena"}
    for name, wanted in names.items():
        assert recognise(written / name) == wanted


def test_a_wrong_format_by_name_is_refused(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(written / "one.pt", capsys, "--from-format", "vortex")
    assert "one.yml: the key hcs_layer_idxs is missing" in error


@pytest.mark.parametrize("source", ["two.pt", "hf"])
def test_every_way_leads_to_the_same_weights(written: Path, tmp_path: Path, source: str) -> None:
    found = HyenaGLT.from_pretrained(convert(written / source, "native", tmp_path / "out"))
    wanted = HyenaGLT.from_pretrained(written / "evo2").stored()
    for name, tensor in found.stored().items():
        if not name.endswith("log_rate") and name != "blocks.1.mixer.taps":
            assert torch.equal(tensor, wanted[name]), name
    torch.testing.assert_close(
        found.stored()["blocks.2.mixer.log_rate"], wanted["blocks.2.mixer.log_rate"]
    )


def test_the_hubs_settings_are_read(files: Path) -> None:
    """config.json, where 1e-06 is a number, beside the weights of a Hugging Face repository."""
    values = yaml.safe_load((files / "one-folder" / "config.yml").read_text())
    (files / "one-folder" / "config.yml").unlink()
    (files / "one-folder" / "config.json").write_text(json.dumps(values | {"eps": 1e-06}))
    model = HyenaGLT.from_pretrained(convert(files / "one-folder", "native", files / "out"))
    assert model.config == of_evo1(max_sequence_length=65536)


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("two.pt", {"eps": None}, "two.yml: the key eps is missing"),
    ("two.pt", {"interleave": None}, "the key interleave is missing"),
    ("two.pt", {"hcl_layer_idxs": [1, 2]}, "hcl_layer_idxs has block 1, but two lists have it"),
    ("two.pt", {"hcl_layer_idxs": []}, "block 2 of 4 is in none of"),
    ("two.pt", {"hcl_layer_idxs": [9]}, "has block 9, but num_layers is 4"),
    ("two.pt", {"hcm_filter_length": 64}, "hcm_filter_length=64, but vortex reads filters"),
    ("two.pt", {"hcm_filter_groups": 3}, "one must divide the other"),
    ("two.pt", {"final_norm": False}, "final_norm=False is a vortex model"),
    ("two.pt", {"column_split_hyena": True}, "are both true"),
    ("two.pt", {"mlp_activation": "relu"}, "mlp_activation='relu'"),
    ("two.pt", {"hidden_size": "wide"}, "hidden_size='wide' must be a whole number"),
    ("two.pt", {"hidden_size": 64, "num_filters": 64}, "the settings say [512, 64]"),
    ("two.pt", {"state_size": 8}, "and the settings say [32, 8]"),
    ("two.pt", {"tie_embeddings": False}, "missing: unembed.weight"),
    ("one.pt", {"mlp_activation": None}, "one.yml: the key mlp_activation is missing"),
    ("one.pt", {"hyena_filter_groups": 3}, "hyena_filter_groups=3 does not divide hidden_size=32"),
]


@pytest.mark.parametrize(("file", "changes", "said"), SETTINGS)
def test_wrong_settings_are_named(
    files: Path, capsys: pytest.CaptureFixture[str], file: str, changes: dict[str, Any], said: str
) -> None:
    change_settings(files / file, **changes)
    assert said in refused(files / file, capsys)


def beyond(tensor: Tensor) -> Tensor:
    tensor[1, 2] = 1.0
    return tensor


TENSORS: list[tuple[str, dict[str, Any], str]] = [
    ("two.pt", {"blocks__1__filter__D": None}, "1 of 44 tensors are missing: blocks.1.filter.D"),
    ("two.pt", {"extra": torch.zeros(2)}, "1 tensors of"),
    ("two.pt", {"blocks__2__filter__log_poles": beyond}, "not below 0"),
    ("two.pt", {"unembed__weight": torch.zeros(512, 32)}, "unembed.weight is not embedding_layer"),
    ("two.pt", {"blocks__3__inner_mha_cls__rotary_emb__inv_freq": lambda t: t.cos()}, "inv_freq"),
    ("two.pt", {"blocks__0__mlp__l1__weight": lambda t: t[:-1]}, "makes blocks.0.mlp.gate_value"),
    ("one.pt", {"blocks__0__filter__poles": beyond}, "not inside the unit circle"),
]


@pytest.mark.parametrize(("file", "changes", "said"), TENSORS)
def test_wrong_tensors_are_named(
    files: Path, capsys: pytest.CaptureFixture[str], file: str, changes: dict[str, Any], said: str
) -> None:
    change_tensors(files / file, **changes)
    assert said in refused(files / file, capsys)


def test_scales_of_fp8_passes_are_left_out_and_that_is_said(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_tensors(files / "two.pt", blocks__0__projections___extra_state=io.BytesIO(b"scales"))
    convert(files / "two.pt", "native", files / "out")
    assert "left out: the scales of FP8 passes (1)" in capsys.readouterr().out
    torch.save(torch.load(files / "two.pt", weights_only=False) | {"x": 1}, files / "two.pt")
    assert "what is no tensor in" in refused(files / "two.pt", capsys)


def test_what_is_allowed_is_listed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_tensors(files / "two.pt", extra=torch.zeros(2))
    convert(files / "two.pt", "native", files / "out", "--allow-lossy", "unused")
    assert "lost (unused): 1 tensors of" in capsys.readouterr().out
    assert "extra" in (files / "out" / "lossy.json").read_text()


@pytest.mark.parametrize(
    ("stored", "base", "scaling", "rounded"),
    [
        (lambda t: t.bfloat16().float(), 10000.0, 1.0, True),
        (lambda t: 1e6 ** (-torch.arange(8) / 8), 1e6, 1.0, False),
        (lambda t: (1e6 ** (-torch.arange(8) / 8)).bfloat16(), 1e6, 1.0, True),
        (lambda t: t / 4, 10000.0, 4.0, False),
    ],
)
def test_stored_frequencies_tell_base_and_scaling(
    files: Path, stored: Any, base: float, scaling: float, rounded: bool
) -> None:
    """Whatever the settings say: base 10000, no scaling."""
    name = "blocks.3.inner_mha_cls.rotary_emb.inv_freq"
    change_tensors(files / "two.pt", **{name.replace(".", "__"): stored})
    convert(files / "two.pt", "native", files / "out")
    config = HyenaGLT.from_pretrained(files / "out").config
    assert config.rope_base == pytest.approx(base, rel=1e-6)
    assert config.rope_scaling == pytest.approx(scaling, rel=1e-6)
    assert config.rope_bf16 == rounded
    back = convert(files / "out", "vortex", files / "back.pt")
    assert torch.equal(torch.load(back)[name], torch.load(files / "two.pt")[name])


@pytest.mark.parametrize("missing", ["two.yml", "two.pt"])
def test_a_missing_file_is_named(
    files: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (files / missing).unlink()
    assert f"{missing}: not found" in refused(files / "two.pt", capsys)


def test_settings_may_lie_elsewhere(files: Path) -> None:
    shutil.move(files / "two.yml", files / "elsewhere.yml")
    convert(files / "two.pt", "native", files / "o", "--settings", str(files / "elsewhere.yml"))


def test_a_damaged_native_folder_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads((files / "evo2" / "config.json").read_text())
    (files / "evo2" / "config.json").write_text(json.dumps(values | {"ffn_hidden_size": 64}))
    assert "blocks.0.mlp.gate_value has shape [96, 32]" in refused(files / "evo2", capsys)
    (files / "evo2" / "config.json").write_text(json.dumps(values | {"pattern": "SMLAA"}))
    assert "only the file or only the model" in refused(files / "evo2", capsys)


def test_filters_that_channels_share_stand_for_each_and_are_shared_again(files: Path) -> None:
    """16 filters for 32 channels: neighbours have the same."""
    few = torch.load(files / "one.pt")
    whole = dict(few)
    for name in few:
        if name.endswith(("poles", "residues")):
            few[name] = few[name][::2].contiguous()
            whole[name] = few[name].repeat_interleave(2, 0)
    torch.save(few, files / "one.pt")
    change_settings(files / "one.pt", hyena_filter_groups=2)
    torch.save(whole, files / "whole.pt")
    shutil.copy(files / "one.yml", files / "whole.yml")
    change_settings(files / "whole.pt", hyena_filter_groups=1)
    shared, apart = (
        HyenaGLT.from_pretrained(convert(files / f"{name}.pt", "native", files / f"{name}-ours"))
        for name in ("one", "whole")
    )
    for name, tensor in shared.stored().items():
        assert torch.equal(tensor, apart.stored()[name]), name
    for name, wanted in (("one", few), ("whole", whole)):
        back = convert(files / f"{name}-ours", "stripedhyena", files / f"{name}-back.pt")
        found = torch.load(back)
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
        assert settings_of(back) == settings_of(files / f"{name}.pt")


def test_a_mode_that_fp32_cannot_tell_from_a_constant_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found in the middle of writing: what stood there stays."""
    model = HyenaGLT.from_pretrained(files / "evo1")
    with torch.no_grad():
        model.stored()["blocks.2.mixer.log_rate"][3, 4] = -30.0
        model.stored()["blocks.2.mixer.phase"][3, 4] = 0.0
    model.save_pretrained(files / "evo1")
    before = (files / "one.pt").read_bytes()
    output = str(files / "one.pt")
    assert main(["--from", str(files / "evo1"), "--to", "stripedhyena", "--output", output]) == 2
    assert "blocks.2.filter.poles: 1 of 256 poles are not inside" in capsys.readouterr().err
    assert (files / "one.pt").read_bytes() == before
    assert not list(files.glob(".*"))
