"""What a native folder keeps of its origin makes the way back exact, until a weight has moved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_hyena import HyenaGLT
from megatron_hyena.checkpoint.exchange.origin import SETTINGS
from tests.peers.converting import convert, of_evo1, of_evo2, random_model, settings_of
from tools.convert_checkpoint import main

FINE = ("log_poles", "residues", "inv_freq")
MOVED = "blocks.2.filter.log_poles"


def changed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """As a peer has them: bf16, log poles that no log_rate gives, filters that groups share."""
    found = {n: t if n.endswith(FINE) else t.bfloat16() for n, t in tensors.items()}
    draw = torch.Generator().manual_seed(4)
    found[MOVED] = -torch.exp(torch.randn(32, 16, 1, generator=draw) - 3)
    found["blocks.1.filter.h"] = found["blocks.1.filter.h"][::2].contiguous()
    settings = settings_of(path) | {"hcm_filter_groups": 2, "remark": "kept as it is"}
    path.with_suffix(".yml").write_text(json.dumps(settings))
    found["unembed.weight"] = found["embedding_layer.weight"].clone()
    torch.save(found, path)
    return found


@pytest.fixture
def theirs(tmp_path: Path) -> dict[str, Tensor]:
    """A vortex file `theirs.pt`, read to `ours`."""
    random_model(of_evo2()).save_pretrained(tmp_path / "start")
    path = convert(tmp_path / "start", "vortex", tmp_path / "theirs.pt")
    found = changed(torch.load(path), path)
    convert(path, "native", tmp_path / "ours")
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], but: str = "none") -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if but not in name:
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_the_way_back_is_exact(tmp_path: Path, theirs: dict[str, Tensor]) -> None:
    rate = HyenaGLT.from_pretrained(tmp_path / "ours").stored()["blocks.2.mixer.log_rate"]
    assert not torch.equal(-rate.exp(), theirs[MOVED][..., 0])  # without the origin it is not
    back = convert(tmp_path / "ours", "vortex", tmp_path / "back.pt")
    assert_same(torch.load(back), theirs)
    assert settings_of(back) == settings_of(tmp_path / "theirs.pt")


def test_a_native_copy_keeps_the_origin(tmp_path: Path, theirs: dict[str, Tensor]) -> None:
    convert(tmp_path / "ours", "native", tmp_path / "copy")
    back = convert(tmp_path / "copy", "vortex", tmp_path / "back.pt")
    assert_same(torch.load(back), theirs)


def test_moved_weights_are_derived_anew_and_that_is_said(
    tmp_path: Path, theirs: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    model = HyenaGLT.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        model.stored()["blocks.2.mixer.log_rate"][3, 5] += 0.125
        model.stored()["blocks.0.mlp.output"][0, 0] += 1e-3
        model.stored()["blocks.1.mixer.taps"][0, 0] += 0.501
    model.save_pretrained(tmp_path / "ours")  # as a training program would, over the old files
    found = torch.load(convert(tmp_path / "ours", "vortex", tmp_path / "back.pt"))
    said = capsys.readouterr().out
    assert f"derived anew, since the weights have changed: {MOVED}" in said
    assert "no longer of the stored dtype: blocks.0.mlp.l3.weight, blocks.1.filter.h" in said
    rate = model.stored()["blocks.2.mixer.log_rate"]
    assert torch.equal(found[MOVED], -rate.exp()[..., None])
    assert found["blocks.0.mlp.l3.weight"].dtype == torch.float32
    assert torch.equal(found["blocks.0.mlp.l3.weight"], model.stored()["blocks.0.mlp.output"])
    assert found["blocks.1.filter.h"].shape == (4, 1, 128)  # no longer shared
    assert settings_of(tmp_path / "back.pt")["hcm_filter_groups"] == 4
    untouched = {n: t for n, t in found.items() if n.startswith("blocks.3.")}
    assert_same(untouched, {n: theirs[n] for n in untouched})


def test_another_architecture_has_no_origin(tmp_path: Path, theirs: dict[str, Tensor]) -> None:
    path = tmp_path / "ours" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_base": 500.0}))
    back = convert(tmp_path / "ours", "vortex", tmp_path / "back.pt")
    assert settings_of(back)["rotary_emb_base"] == 500.0
    name = "blocks.3.inner_mha_cls.rotary_emb.inv_freq"
    assert torch.allclose(torch.load(back)[name], 500.0 ** (-torch.arange(8) / 8))


def test_a_dtype_asked_for_is_given_but_for_modes(
    tmp_path: Path, theirs: dict[str, Tensor]
) -> None:
    found = torch.load(
        convert(tmp_path / "ours", "vortex", tmp_path / "back.pt", "--dtype", "fp16")
    )
    for name, tensor in found.items():
        assert tensor.dtype == (torch.float32 if name.endswith(FINE) else torch.float16), name
    assert torch.equal(found[MOVED], theirs[MOVED])


def test_ours_come_back_exactly(tmp_path: Path) -> None:
    """Without an origin too: what the format can say bit by bit."""
    cases = [(of_evo2(mr_decay="none"), "vortex"), (of_evo1(), "stripedhyena")]
    cases += [(replace(config, ffn_hidden_size=-1), to) for config, to in cases]
    for number, (config, to) in enumerate(cases):
        folder = tmp_path / str(number)
        model = random_model(config)
        model.save_pretrained(folder / "ours")
        convert(folder / "ours", to, folder / "x.pt")
        found = HyenaGLT.from_pretrained(convert(folder / "x.pt", "native", folder / "back"))
        assert found.config == config
        for name, tensor in model.stored().items():
            if name.endswith(("log_rate", "phase")):  # made of poles
                torch.testing.assert_close(found.stored()[name], tensor, rtol=2e-6, atol=2e-6)
            else:
                assert torch.equal(found.stored()[name], tensor), name


def test_decayed_taps_become_taps_without_decay(tmp_path: Path) -> None:
    model = random_model(of_evo2(mr_decay="strong"))
    model.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", "vortex", tmp_path / "x.pt")
    found = HyenaGLT.from_pretrained(convert(tmp_path / "x.pt", "native", tmp_path / "back"))
    assert found.config.mr_decay == "none"
    ids = torch.randint(512, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_damaged_origin_is_named(
    tmp_path: Path, theirs: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours" / SETTINGS).write_text("{}")
    arguments = ["--from", str(tmp_path / "ours"), "--to", "vortex"]
    assert main([*arguments, "--output", str(tmp_path / "x.pt")]) == 2
    assert "origin.json: damaged" in capsys.readouterr().err


def test_a_model_trained_from_a_folder_takes_its_origin(
    tmp_path: Path, theirs: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    HyenaGLT.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "trained")
    plain = convert(tmp_path / "trained", "vortex", tmp_path / "plain.pt")
    assert not torch.equal(torch.load(plain)[MOVED], theirs[MOVED])
    more = ["--origin", str(tmp_path / "ours")]
    assert_same(torch.load(convert(tmp_path / "trained", "vortex", plain, *more)), theirs)
    arguments = ["--from", str(tmp_path / "trained"), "--to", "vortex", "--output", str(plain)]
    assert main([*arguments, "--origin", str(tmp_path / "trained")]) == 2
    assert "no origin.json in it" in capsys.readouterr().err


def test_heads_beside_a_model_are_not_forgotten(
    tmp_path: Path, theirs: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"coding.weight": torch.zeros(2, 32)}, tmp_path / "ours" / "heads.safetensors")
    arguments = ["--from", str(tmp_path / "ours"), "--output", str(tmp_path / "out.pt")]
    for to in ("vortex", "native"):
        assert main([*arguments, "--to", to]) == 2
        assert "which --head none leaves out; or lose it knowingly by --allow-lossy heads" in (
            capsys.readouterr().err
        )
    assert main([*arguments, "--to", "hf"]) == 2
    assert "no tasks.json says what its heads are" in capsys.readouterr().err
    assert main([*arguments, "--to", "vortex", "--allow-lossy", "heads"]) == 0
