"""savanna's folders, both ways: the model they hold, their tensors, ranks and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from megatron_hyena import HyenaGLT, HyenaGLTConfig
from megatron_hyena.checkpoint.exchange import savanna_files, savanna_table
from megatron_hyena.checkpoint.exchange.formats import Options, convert, recognise
from megatron_hyena.checkpoint.exchange.lossy import Losses
from megatron_hyena.checkpoint.exchange.mapping import SAME, Form
from megatron_hyena.checkpoint.exchange.savanna_files import Ranks
from megatron_hyena.checkpoint.exchange.savanna_shards import read_shards
from megatron_hyena.errors import UserError
from tests.oracles.savanna_folder import Model, draw, logits, write_folder

IDS = np.random.RandomState(3).randint(0, 64, 40)
MODELS = {
    "as Evo 2": Model(),
    "eps under the root, untied": Model(outside=False, tied=False),
    "bias of S for each group": Model(pattern="SSA", se_bias=8),
    "bias of S for each channel": Model(pattern="SM", se_bias=32),
    "a decay of ours": Model(pattern="MS", preset="normal"),
    "old rows": Model(pattern="SLA", interleaved=False, ranks=2),
    "scaled positions": Model(
        pattern="AS",
        settings={"pos_emb": "rotary_linear_scaled", "rotary_emb_scaling_factor": 16.0},
    ),
    "one activation": Model(pattern="ASML", settings={"parallel_glu_activation_default": "gelu"}),
}


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, whole."""
    return dict(read_shards(folder, Losses("native")).tensors)


def close(model: HyenaGLT, expected: np.ndarray) -> bool:
    with torch.no_grad():
        found = model.double()(torch.from_numpy(IDS)[None]).logits[0].numpy()
    return bool(np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


ROUNDED = "frequencies rounded to bf16"
MODELS[ROUNDED] = Model(pattern="AS")


def drawn(name: str) -> dict[str, Tensor]:
    """A model's tensors."""
    tensors, stored = draw(MODELS[name]), "sequential.2.mixer.rotary_emb.inv_freq"
    if name == ROUNDED:
        tensors[stored] = tensors[stored].bfloat16().float()
    return tensors


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_the_model_that_savanna_trains(name: str, tmp_path: Path) -> None:
    model, tensors = MODELS[name], drawn(name)
    folder = write_folder(tmp_path / "theirs", model, tensors)
    assert recognise(folder) == recognise(folder / "global_step7") == "savanna"
    convert(folder, "native", tmp_path / "ours", Options())
    ours = HyenaGLT.from_pretrained(tmp_path / "ours")
    assert close(ours, logits(model, tensors, IDS))
    assert ours.config.rope_bf16 is (name == ROUNDED)
    back = Ranks(tensor=model.ranks)
    convert(tmp_path / "ours", "savanna", tmp_path / "again", Options(ranks=back))
    assert same(stored(tmp_path / "again"), tensors)
    read = [yaml.safe_load((f / "configs/model.yml").read_text()) for f in _steps(tmp_path)]
    kept = {key.replace("-", "_"): value for key, value in read[0].items()}
    assert {key: read[1][key] for key in kept} == kept


def _steps(folder: Path) -> list[Path]:
    return [folder / "theirs" / "global_step7", folder / "again" / "global_step0"]


SWEEP = [
    (1, 1, 2),
    (3, 3, 2),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 1, 1), (3, 1, 1), (3, 1, 2))),
]


@pytest.mark.parametrize(("stage", "data", "ranks"), SWEEP)
def test_any_ranks_and_stages_hold_the_same_tensors(
    stage: int, data: int, ranks: int, tmp_path: Path
) -> None:
    model = Model(ranks=ranks, se_bias=32)
    tensors = draw(model)
    write_folder(tmp_path / "theirs", model, tensors, stage=stage, data=data)
    assert same(stored(tmp_path / "theirs"), tensors)
    convert(tmp_path / "theirs", "native", tmp_path / "ours", Options())
    for other in (Ranks(1, 1, 1), Ranks(4, 2, 3)):
        convert(tmp_path / "ours", "savanna", tmp_path / "again", Options(ranks=other))
        assert same(stored(tmp_path / "again"), tensors), other
        parts = list((tmp_path / "again" / "global_step0").glob("*.pt"))
        each = 1 if other.stage == 1 else 2 * other.data
        assert len(parts) == other.tensor * each


@pytest.mark.parametrize("data", (1, 3))
def test_fp32_parameters_are_taken_where_modules_are_bf16(data: int, tmp_path: Path) -> None:
    model = Model(ranks=2)
    tensors = draw(model)
    write_folder(tmp_path, model, tensors, data=data, masters=True)
    assert same(stored(tmp_path), tensors)
    for path in (tmp_path / "global_step7").glob("*_optim_states.pt"):
        path.unlink()
    coarse = stored(tmp_path)
    name = "sequential.2.mlp.w1.weight"
    assert coarse[name].dtype == torch.bfloat16
    assert torch.equal(coarse[name], tensors[name].bfloat16())
    convert(tmp_path, "native", tmp_path / "ours", Options())
    convert(tmp_path / "ours", "savanna", tmp_path / "again", Options())
    assert same(stored(tmp_path / "again"), coarse)


@pytest.mark.parametrize("stage", (1, 3))
def test_modes_and_decays_stay_fp32_in_a_bf16_folder(stage: int, tmp_path: Path) -> None:
    model = HyenaGLT(HyenaGLTConfig(pattern="SML", hidden_size=32, vocab_size=64))
    model.save_pretrained(tmp_path / "ours")
    options = Options(dtype="bf16", ranks=Ranks(stage=stage))
    convert(tmp_path / "ours", "savanna", tmp_path / "theirs", options)
    found = stored(tmp_path / "theirs")
    for block, name in ((3, "decay"), (4, "p"), (4, "gamma"), (4, "R"), (4, "t")):
        assert found[f"sequential.{block}.mixer.mixer.filter.{name}"].dtype == torch.float32
    assert torch.equal(found["sequential.4.mixer.mixer.filter.p"], model.blocks[2].mixer.log_rate)
    row = found["sequential.2.mlp.w1.weight"]
    assert row.dtype == (torch.bfloat16 if stage == 1 else torch.float32)
    assert torch.equal(row.float(), model.blocks[0].mlp.gate_value[:128].bfloat16().float())


def test_blocks_without_an_mlp_have_one_of_zeros(tmp_path: Path) -> None:
    config = HyenaGLTConfig(pattern="SA", hidden_size=32, num_heads=4, ffn_hidden_size=-1)
    model = HyenaGLT(replace(config, vocab_size=64), seed=1)
    model.save_pretrained(tmp_path / "ours")
    done = convert(
        tmp_path / "ours", "savanna", tmp_path / "theirs", Options(ranks=Ranks(tensor=2))
    )
    assert any("without an MLP" in note for note in done.notes)
    settings = yaml.safe_load(
        (tmp_path / "theirs" / "global_step0" / "configs" / "model.yml").read_text()
    )
    described = Model(pattern="SA", groups=2, outside=False, settings=settings)
    expected = logits(described, stored(tmp_path / "theirs"), IDS)
    convert(tmp_path / "theirs", "native", tmp_path / "back", Options())
    again = HyenaGLT.from_pretrained(tmp_path / "back")
    assert again.config.ffn == 0
    assert close(again, expected) and close(model, expected)


def test_our_models_become_savannas(tmp_path: Path) -> None:
    for number, config in enumerate(
        (
            HyenaGLTConfig(pattern="SMLA", hidden_size=32, num_heads=4, vocab_size=64),
            HyenaGLTConfig(
                pattern="SMAL",
                hidden_size=32,
                num_heads=4,
                vocab_size=64,
                mr_filter_length=20,
                norm_eps_outside=True,
                mlp_activation="evo2",
                mr_decay="weak",
                se_skip=True,
                tie_embeddings=False,
                rope_scaling=4.0,
                rope_base=2e5,
            ),
        )
    ):
        model = HyenaGLT(config, seed=number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "ours")
        ranks = Ranks(tensor=2)
        convert(tmp_path / "ours", "savanna", tmp_path / "theirs", Options(ranks=ranks))
        step = tmp_path / "theirs" / "global_step0"
        settings = yaml.safe_load((step / "configs" / "model.yml").read_text())
        described = Model(
            pattern=config.pattern,
            groups=config.groups,
            outside=config.norm_eps_outside,
            tied=config.tie_embeddings,
            settings=settings,
        )
        tensors = stored(tmp_path / "theirs")
        assert close(HyenaGLT.from_pretrained(tmp_path / "ours"), logits(described, tensors, IDS))
        convert(tmp_path / "theirs", "native", tmp_path / "back", Options())
        again = HyenaGLT.from_pretrained(tmp_path / "back")
        assert replace(again.config, max_sequence_length=65536, num_filter_groups=0) == replace(
            config, ffn_hidden_size=again.config.ffn
        )
        for name, parameter in model.stored().items():
            assert torch.equal(again.stored()[name], parameter), name


def test_weights_that_have_moved_are_derived_anew(tmp_path: Path) -> None:
    model = Model()
    tensors = draw(model)
    write_folder(tmp_path / "theirs", model, tensors)
    convert(tmp_path / "theirs", "native", tmp_path / "ours", Options())
    ours = HyenaGLT.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        ours.blocks[1].mixer.taps += 0.1
    ours.save_pretrained(tmp_path / "ours")
    done = convert(tmp_path / "ours", "savanna", tmp_path / "again", Options())
    assert any("derived anew" in note and "filter.h" in note for note in done.notes)
    assert close(ours, logits(model, stored(tmp_path / "again"), IDS))


def _no_gamma(monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(lambda r: (r, r * 0), lambda p, gamma: (p,), exact=False)
    monkeypatch.setattr(savanna_table, "rates", lambda fold: form)


def _no_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = savanna_table.taps_and_decay

    def alone(config, layout):
        back = lambda h, decay: (h[:, : config.mr_filter_length],)  # noqa: E731
        return Form(taps(config, layout).out, back, exact=False)

    monkeypatch.setattr(savanna_table, "taps_and_decay", alone)


def _old_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savanna_table, "split_by_head", lambda hidden, split: SAME)


def _gates(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = Form(lambda t: t.chunk(2), lambda a, b: (torch.cat([b, a]),))
    monkeypatch.setattr(savanna_table, "HALVES", swapped)


def _turned_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    short = savanna_table.Block.short

    def turned(self):
        first, *rest = short(self)
        out = lambda t: (first.form.out(t)[0].flip(-1),)  # noqa: E731
        back = lambda t: (first.form.back(t)[0].flip(-1),)  # noqa: E731
        return [replace(first, form=Form(out, back)), *rest]

    monkeypatch.setattr(savanna_table.Block, "short", turned)


def _activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savanna_files.savanna, "read_activation", lambda *_: "gelu")


def _eps(monkeypatch: pytest.MonkeyPatch) -> None:
    read = savanna_files.savanna.read_config

    def inside(*given):
        config, layout = read(*given)
        return replace(config, norm_eps_outside=not config.norm_eps_outside), layout

    monkeypatch.setattr(savanna_files.savanna, "read_config", inside)


def _dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    table = savanna_table.table

    def without(config, layout):
        zero = Form(lambda t: (), lambda: (torch.zeros(config.hidden_size),))
        return [
            replace(e, theirs=(), form=zero) if e.ours == ("blocks.2.mixer.skip",) else e
            for e in table(config, layout)
        ]

    monkeypatch.setattr(savanna_files, "table", without)


MISTAKES = {
    "no gamma": (_no_gamma, Model()),
    "no decay": (_no_decay, Model()),
    "old rows as new": (_old_rows, MODELS["old rows"]),
    "gates of the MLP": (_gates, Model()),
    "taps of S turned": (_turned_taps, Model()),
    "activation": (_activation, Model()),
    "eps": (_eps, Model()),
    "a tensor dropped": (_dropped, Model()),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_converter_is_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, model = MISTAKES[name]
    tensors = draw(model)
    write_folder(tmp_path / "theirs", model, tensors)
    break_it(monkeypatch)
    if name == "a tensor dropped":
        with pytest.raises(UserError, match=r"1 tensors of .*theirs \(sequential.4.*conv_bias"):
            convert(tmp_path / "theirs", "native", tmp_path / "ours", Options())
        return
    convert(tmp_path / "theirs", "native", tmp_path / "ours", Options())
    assert not close(HyenaGLT.from_pretrained(tmp_path / "ours"), logits(model, tensors, IDS))
