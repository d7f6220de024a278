"""Models of ours run inside vortex and Evo 2's program, and models of theirs in ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_hyena import HyenaGLT
from megatron_hyena.checkpoint.exchange import blocks, vortex, vortex_files
from megatron_hyena.checkpoint.exchange.mapping import COLUMN, Entry, Form, rows, then
from megatron_hyena.checkpoint.exchange.rows import heads_inside, split_by_head
from megatron_hyena.config import HyenaGLTConfig
from tests.peers.checks import likeliest, mean_likelihood
from tests.peers.converting import (
    TOLERANCE,
    apart,
    arrays_of,
    convert,
    logits_of,
    of_evo2,
    random_model,
    settings_of,
    trained_model,
    write_peer,
)
from tests.peers.process import Arrays, run_in_peer, with_prefix
from tests.peers.reference import evo2_logits
from tests.peers.tiny import EVO2
from tools.convert_checkpoint import main

pytestmark = pytest.mark.smoke
IDS = np.random.default_rng(0).integers(0, 512, (2, 150))
TEXTS, PROMPT = ["ACGTACGTTTGA", "GATTACAGA"], "ACGTTGCAACGTT"
# Every layout of rows and every bias that published and early models have, and plain gates.
OTHER = EVO2 | {
    "interleave": False,
    "column_split_hyena": True,
    "column_split": False,
    "evo2_style_activations": False,
    "qkv_proj_bias": True,
    "short_filter_bias": True,
    "hyena_out_proj_bias": False,
    "tie_embeddings": False,
    "hcs_filter_groups": 2,
    "use_interpolated_rotary_pos_emb": True,
    "rotary_emb_scaling_factor": 16,
}
MADE = {"made": EVO2, "other": OTHER}
HAS_EVO2 = sys.version_info < (3, 13)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vortex")


@pytest.fixture(scope="module")
def models() -> dict[str, HyenaGLT]:
    biased = of_evo2(
        pattern="LSAM", projection_bias=True, tie_embeddings=False, rope_scaling=4.0, rope_base=1e6,
        mlp_activation="silu",
    )  # fmt: skip
    bare = of_evo2(ffn_hidden_size=-1, mlp_activation="gelu")
    return {
        "random": random_model(biased),
        "trained": trained_model(of_evo2()),
        "bare": random_model(bare),
    }


@pytest.fixture(scope="module")
def answers(models: dict[str, HyenaGLT], folder: Path) -> Arrays:
    files = {}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        files[name] = str(convert(folder / name, "vortex", folder / f"{name}.pt"))
    settings: dict[str, Any] = {"cases": "vtx_cases", "files": files, "made": MADE, "prompt": 140}
    if HAS_EVO2:
        config = settings_of(folder / "trained.pt")
        settings["program"] = {
            "cases": "evo2_cases",
            "config": config,
            "path": files["trained"],
            "texts": TEXTS,
            "prompt": PROMPT,
        }
    (folder / "peer").mkdir()
    return run_in_peer("converted_cases", folder / "peer", settings, {"ids": IDS})


@pytest.mark.parametrize("name", ["random", "trained", "bare"])
def test_ours_give_the_same_logits_in_vortex(
    models: dict[str, HyenaGLT], answers: Arrays, name: str
) -> None:
    wanted = logits_of(models[name], IDS)
    assert apart(answers[f"{name}.logits"], wanted) < TOLERANCE
    assert apart(answers[f"{name}.decoded"], wanted) < TOLERANCE
    assert answers[f"{name}.unknown"].tolist() == []


@pytest.mark.skipif(not HAS_EVO2, reason="evo2 ends at Python 3.12")
def test_ours_score_and_write_in_evo2(answers: Arrays, folder: Path) -> None:
    """It rounds what it reads to bf16, as `--dtype bf16` does."""
    rounded = convert(folder / "trained", "vortex", folder / "rounded.pt", "--dtype", "bf16")
    model = HyenaGLT.from_pretrained(convert(rounded, "native", folder / "rounded")).eval()

    def logits(_: Arrays, ids: np.ndarray) -> np.ndarray:
        return logits_of(model, ids)

    assert apart(answers["program.logits"], logits_of(model, IDS)) < TOLERANCE
    expected = [mean_likelihood(logits, {}, text, start=False) for text in TEXTS]
    np.testing.assert_allclose(answers["program.scores"], expected, rtol=1e-4)
    written = likeliest(logits, {}, PROMPT, 8)
    assert answers["program.written.cached"].tolist() == written
    assert answers["program.written.whole"].tolist() == written


@pytest.mark.parametrize("name", MADE)
def test_theirs_are_ours_and_come_back_bit_by_bit(
    answers: Arrays, tmp_path: Path, name: str
) -> None:
    weights = with_prefix(answers, f"{name}.weights.")
    theirs = write_peer(tmp_path / "theirs", weights, MADE[name])
    model = HyenaGLT.from_pretrained(convert(theirs, "native", tmp_path / "ours")).eval()
    assert apart(logits_of(model, IDS), answers[f"{name}.logits"]) < TOLERANCE
    back = convert(tmp_path / "ours", "vortex", tmp_path / "back.pt")
    assert settings_of(back) == MADE[name]
    again = arrays_of(back)
    assert again.keys() == weights.keys()
    for key, array in weights.items():
        assert again[key].tobytes() == array.tobytes(), key


# Eight mistakes of a converter, of which each must be heard.


def without_one(config: HyenaGLTConfig, *rest: Any) -> list[Entry]:
    return [e for e in blocks.table(config, *rest) if "blocks.1.filter.D" not in e.theirs]


def reversed_taps(self: blocks.Block) -> list[Entry]:
    flip = Form(lambda t: (t.flip(1),), lambda t: (t.flip(1),))
    kept = [entry for entry in TAPS(self) if "mixer.taps" not in entry.ours[0]]
    (taps,) = [entry for entry in TAPS(self) if "mixer.taps" in entry.ours[0]]
    return [*kept, Entry(taps.ours, taps.theirs, then(flip, taps.form))]


def swapped_gates(config: HyenaGLTConfig, layout: blocks.Layout) -> Form:
    return rows(torch.arange(3 * config.hidden_size).view(-1, 3)[:, [1, 0, 2]].reshape(-1))


def rates_for_poles(name: str) -> Form:
    return Form(lambda t: (t.unsqueeze(-1),), lambda t: (t.squeeze(-1),))


def another_base(config: HyenaGLTConfig) -> Form:
    return Form(lambda: (FREQUENCIES(config).out()[0] ** 1.1,), lambda _: ())


def every_gelu(*arguments: Any) -> dict[str, Any]:
    return SETTINGS(*arguments) | {"evo2_style_activations": False}


TAPS, FREQUENCIES, SETTINGS = blocks.Block.medium, blocks.frequencies, vortex.settings_of
MUTATIONS = {
    "a tensor dropped": (vortex_files, "table", without_one),
    "taps reversed": (blocks.Block, "medium", reversed_taps),
    "gates swapped": (blocks, "row_order", swapped_gates),
    "not interleaved": (blocks, "row_order", lambda *_: split_by_head(32, 2)),
    "poles as rates": (vortex, "log_poles", rates_for_poles),
    "activations": (vortex, "settings_of", every_gelu),
    "base of RoPE": (blocks, "frequencies", another_base),
    "rows of Wqkv": (blocks, "qkv_order", lambda *_: heads_inside(32, 2)),
    "nothing": (blocks, "COLUMN", COLUMN),
}


def refused_or_apart(source: Path, to: str, output: Path, logits: Any, wanted: np.ndarray) -> bool:
    if main(["--from", str(source), "--to", to, "--output", str(output)]):
        return True
    try:
        return apart(logits(output), wanted) > TOLERANCE
    except KeyError:  # a tensor is missing
        return True


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_on_the_way_out_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Judged by `reference`, which the tests beside this one hold to the peer itself."""
    model = random_model(of_evo2())
    model.save_pretrained(tmp_path / "ours")
    ids = IDS[0, :40]

    def logits(path: Path) -> np.ndarray:
        return evo2_logits(arrays_of(path), settings_of(path), ids)

    monkeypatch.setattr(*MUTATIONS[name])
    heard = refused_or_apart(
        tmp_path / "ours", "vortex", tmp_path / "out.pt", logits, logits_of(model, ids)
    )
    assert heard == (name != "nothing")


@pytest.mark.parametrize("name", [n for n in MUTATIONS if n not in ("activations", "base of RoPE")])
def test_a_mistake_on_the_way_in_is_heard(
    answers: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    theirs = write_peer(tmp_path / "theirs", with_prefix(answers, "made.weights."), EVO2)

    def logits(path: Path) -> np.ndarray:
        return logits_of(HyenaGLT.from_pretrained(path).eval(), IDS)

    monkeypatch.setattr(*MUTATIONS[name])
    heard = refused_or_apart(theirs, "native", tmp_path / "in", logits, answers["made.logits"])
    assert heard == (name != "nothing")


def test_settings_and_frequencies_are_read_not_assumed(answers: Arrays, tmp_path: Path) -> None:
    """On the way in these two are no functions to mutate but facts of the file."""
    weights = with_prefix(answers, "made.weights.")
    for change in ({"evo2_style_activations": False}, {"rotary_emb_base": 500.0}):
        name = next(iter(change))
        theirs = write_peer(tmp_path / name, weights, EVO2 | change)
        ours = convert(theirs, "native", tmp_path / f"{name}-ours")
        model = HyenaGLT.from_pretrained(ours).eval()
        same = apart(logits_of(model, IDS), answers["made.logits"]) < TOLERANCE
        assert same == (name == "rotary_emb_base")  # the stored frequencies are used, not the base
