"""Models of ours run inside stripedhyena and Evo 1's program, and models of theirs in ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena import HyenaGLT
from megatron_hyena.checkpoint.exchange import blocks, hyena_forms, stripedhyena
from megatron_hyena.checkpoint.exchange.mapping import SAME, Entry, Form, rows
from tests.peers.checks import likeliest, mean_likelihood
from tests.peers.converting import (
    TOLERANCE,
    apart,
    arrays_of,
    convert,
    logits_of,
    of_evo1,
    random_model,
    settings_of,
    trained_model,
    write_peer,
)
from tests.peers.process import Arrays, run_in_peer, with_prefix
from tests.peers.reference import evo1_logits
from tests.peers.tiny import EVO1, EVO1_LONG
from tools.convert_checkpoint import main

pytestmark = pytest.mark.smoke
IDS = np.random.default_rng(0).integers(0, 512, (2, 60))
TEXTS, PROMPT = ["ACGTACGTTTGA", "GATTACAGAGGC"], "ACGTTGCAACGTT"
MADE = {"made": EVO1, "long": EVO1_LONG | {"mlp_activation": "silu", "tie_embeddings": False}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stripedhyena")


@pytest.fixture(scope="module")
def models() -> dict[str, HyenaGLT]:
    plain = of_evo1(pattern="ALL", li_poles="real", li_modes=16, projection_bias=False,
                    tie_embeddings=False, rope_scaling=4.0, ffn_hidden_size=-1)  # fmt: skip
    return {
        "random": random_model(of_evo1()),
        "plain": random_model(plain),
        "trained": trained_model(of_evo1()),
    }


@pytest.fixture(scope="module")
def answers(models: dict[str, HyenaGLT], folder: Path) -> Arrays:
    files = {}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        files[name] = str(convert(folder / name, "stripedhyena", folder / f"{name}.pt"))
    hub = convert(folder / "trained", "stripedhyena", folder / "hub", "--max-shard-size", "30KB")
    assert len(list(hub.glob("model-*.safetensors"))) > 1
    program = {
        "cases": "evo_model_cases",
        "config": settings_of(folder / "trained.pt"),
        "folder": str(hub),
        "texts": TEXTS,
        "prompt": PROMPT,
    }
    settings: dict[str, Any] = {"cases": "stripedhyena_cases", "files": files, "made": MADE}
    (folder / "peer").mkdir()
    return run_in_peer(
        "converted_cases",
        folder / "peer",
        settings | {"prompt": 50, "program": program},
        {"ids": IDS},
    )


@pytest.mark.parametrize("name", ["random", "plain", "trained"])
def test_ours_give_the_same_logits_in_stripedhyena(
    models: dict[str, HyenaGLT], answers: Arrays, name: str
) -> None:
    wanted = logits_of(models[name], IDS)
    assert apart(answers[f"{name}.logits"], wanted) < TOLERANCE
    assert apart(answers[f"{name}.decoded"], wanted) < TOLERANCE
    assert answers[f"{name}.unknown"].tolist() == []


def test_ours_score_and_write_in_evo(answers: Arrays, folder: Path) -> None:
    """It rounds what it reads to bf16, the frequencies of RoPE too."""
    rounded = convert(folder / "trained", "stripedhyena", folder / "rounded.pt", "--dtype", "bf16")
    arrays = arrays_of(rounded)
    for name, array in arrays.items():
        if name.endswith("inv_freq"):
            arrays[name] = torch.from_numpy(array).bfloat16().float().numpy()
    config = settings_of(rounded)

    def logits(_: Arrays, ids: np.ndarray) -> np.ndarray:
        return evo1_logits(arrays, config, ids)

    wanted = np.stack([logits({}, row) for row in IDS])
    assert apart(answers["program.logits"], wanted) < TOLERANCE
    expected = [mean_likelihood(logits, {}, text, start=True) for text in TEXTS]
    np.testing.assert_allclose(answers["program.scores"], expected, rtol=1e-4)
    assert answers["program.written"].tolist() == likeliest(logits, {}, PROMPT, 8)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("form", ["pt", "folder"])
def test_theirs_are_ours_and_come_back_bit_by_bit(
    answers: Arrays, tmp_path: Path, name: str, form: str
) -> None:
    weights = with_prefix(answers, f"{name}.weights.")
    source = write_peer(tmp_path / "theirs", weights, MADE[name])
    if form == "folder":
        source = convert(source, "stripedhyena", tmp_path / "hub")
    model = HyenaGLT.from_pretrained(convert(source, "native", tmp_path / "ours")).eval()
    assert apart(logits_of(model, IDS), answers[f"{name}.logits"]) < TOLERANCE
    back = convert(tmp_path / "ours", "stripedhyena", tmp_path / "back.pt")
    if form == "pt":
        assert settings_of(back) == MADE[name]
    again = arrays_of(back)
    assert again.keys() == weights.keys()
    for key, array in weights.items():
        assert again[key].tobytes() == array.tobytes(), key


# Mistakes of a converter, of which each must be heard.


def logarithms_for_poles(name: str, turning: bool) -> Form:
    def out(log_rate: torch.Tensor, phase: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.stack([-log_rate.exp(), phase], -1)[:, :, None],)

    def back(stored: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (stored[:, :, 0, 0].abs().log(), stored[:, :, 0, 1])

    return Form(out, back)


def turned_back(turning: bool) -> Form:
    right = hyena_forms.residues(turning)

    def out(real: torch.Tensor, imaginary: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return right.out(real, -imaginary)

    def back(stored: torch.Tensor) -> tuple[torch.Tensor, ...]:
        real, imaginary = right.back(stored)
        return (real, -imaginary)

    return Form(out, back)


def swapped_gates(config: Any, layout: blocks.Layout) -> Form:
    return rows(torch.arange(96).view(2, 16, 3).permute(0, 2, 1)[:, [1, 0, 2]].reshape(-1))


def no_bias(self: blocks.Block, ours: str, theirs: str, *_: Any) -> list[Entry]:
    lost = Form(lambda _: (torch.zeros(96),), lambda _: (torch.zeros(96),))
    return [self.entry(ours, theirs, lost)]


MUTATIONS = {
    "logarithms of poles": (stripedhyena, "poles", logarithms_for_poles),
    "conjugate residues": (stripedhyena, "residues", turned_back),
    "gates swapped": (blocks, "row_order", swapped_gates),
    "interleaved": (blocks, "row_order", lambda *_: SAME),
    "rows of Wqkv": (blocks, "qkv_order", lambda *_: SAME),
    "biases": (blocks.Block, "bias", no_bias),
    "nothing": (blocks, "SAME", SAME),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_heard_both_ways(
    answers: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Out: judged by `reference`, which the tests beside this one hold to the peer. In: by it."""
    model, ids = random_model(of_evo1()), IDS[0, :40]
    model.save_pretrained(tmp_path / "ours")
    theirs = write_peer(tmp_path / "theirs", with_prefix(answers, "made.weights."), EVO1)
    monkeypatch.setattr(*MUTATIONS[name])
    out = convert(tmp_path / "ours", "stripedhyena", tmp_path / "out.pt")
    found = evo1_logits(arrays_of(out), settings_of(out), ids)
    assert (apart(found, logits_of(model, ids)) > TOLERANCE) == (name != "nothing")
    if main(["--from", str(theirs), "--to", "native", "--output", str(tmp_path / "in")]) == 0:
        read = HyenaGLT.from_pretrained(tmp_path / "in").eval()
        heard = apart(logits_of(read, IDS), answers["made.logits"]) > TOLERANCE
        assert heard == (name != "nothing")
    else:
        assert name != "nothing"
