"""Reading a run's configuration: fragments, overrides, types, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_hyena.config import Config, config_dict, load_config, save_config, valid_keys
from megatron_hyena.config.sections import ExchangeSection
from megatron_hyena.errors import UserError

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "configs" / "run"
RUNS = sorted({*FOLDER.glob("*.yaml")} - {*FOLDER.glob("finetune_*.yaml")})


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_file_gives_the_defaults() -> None:
    assert load_config(None) == Config()


def test_fragments_then_file_then_overrides_later_wins(tmp_path: Path) -> None:
    write(tmp_path / "model/a.yaml", "model: {hidden_size: 64, num_heads: 2, vocab_size: 256}")
    write(tmp_path / "model/b.yaml", "model: {hidden_size: 128}\ntrain: {steps: 7}")
    run = write(
        tmp_path / "run/r.yaml",
        "include: [../model/a.yaml, ../model/b.yaml]\nmodel: {num_heads: 4}\ntrain: {steps: 9}",
    )
    config = load_config(run, ["train.steps=11", "train.precision=bf16"])
    assert (config.model.hidden_size, config.model.num_heads) == (128, 4)
    assert (config.train.steps, config.train.precision) == (11, "bf16")
    assert config.optim == Config().optim


def test_a_fragment_may_include_another_relative_to_itself(tmp_path: Path) -> None:
    write(tmp_path / "base/low.yaml", "train: {steps: 3}\nlog: {every: 2}")
    write(tmp_path / "mid.yaml", "include: [base/low.yaml]\ntrain: {steps: 4}")
    config = load_config(write(tmp_path / "run/r.yaml", "include: [../mid.yaml]"))
    assert (config.train.steps, config.log.every) == (4, 2)


def test_one_fragment_may_be_included_twice_but_not_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path / "low.yaml", "train: {steps: 3}")
    write(tmp_path / "mid.yaml", "include: [low.yaml]")
    assert load_config(write(tmp_path / "r.yaml", "include: [mid.yaml, low.yaml]")).train.steps == (
        3
    )
    write(tmp_path / "a.yaml", "include: [b.yaml]")
    write(tmp_path / "b.yaml", "include: [a.yaml]")
    assert "includes itself" in refused(tmp_path / "a.yaml")
    assert "includes itself" in refused(write(tmp_path / "self.yaml", "include: [self.yaml]"))


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optim.lr=3e-4", "optim", "lr", 3e-4),
        ("parallel.sequence=true", "parallel", "sequence", True),
        ("train.steps=12", "train", "steps", 12),
        ("run.output_dir=runs/a=b", "run", "output_dir", "runs/a=b"),
        ("model.pattern=[SM]2 A", "model", "pattern", "[SM]2 A"),
        ("data.valid=", "data", "valid", ""),
        ("run.output_dir=12", "run", "output_dir", "12"),
        ("parallel.recompute=SM", "parallel", "recompute", "SM"),
        ("parallel.exchange.L=all_to_all", "parallel", "exchange", ExchangeSection(L="all_to_all")),
        ("parallel.exchange.A=", "parallel", "exchange", ExchangeSection()),
    ],
)
def test_overrides_are_read_as_the_type_of_their_key(
    override: str, section: str, key: str, value: object
) -> None:
    found = getattr(getattr(load_config(None, [override]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_numbers_in_exponent_form_are_numbers(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "r.yaml", "optim: {lr: 2e-3}")).optim.lr == 2e-3


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.step=3", "train.steps"),
        ("train.globl_batch_size=3", "train.global_batch_size"),
        ("optim.learning_rate=1", "optim.min_lr"),
        ("model.hidden=3", "model.hidden_size"),
        ("trian.steps=3", "train"),
        ("train.steps.x=3", "train.steps"),
        ("parallel.exchange.Q=halo", "parallel.exchange.W"),
        ("parallel.exchang.L=state", "parallel.exchange.L"),
        ("parallel.exchange.L.x=state", "parallel.exchange.L"),
        ("paralel.exchange.L=state", "parallel"),
    ],
)
def test_unknown_keys_name_the_nearest_valid_one(override: str, nearest: str) -> None:
    message = refused(None, override)
    assert message.startswith("the command line: unknown")
    assert message.endswith(f"did you mean {nearest}?")


def test_unknown_keys_of_a_file_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "train: {stpes: 3}")
    assert refused(path) == f"{path}: unknown key train.stpes; did you mean train.steps?"
    path = write(tmp_path / "r.yaml", "modle: {}")
    assert refused(path) == f"{path}: unknown section 'modle'; did you mean model?"
    path = write(tmp_path / "r.yaml", "3: {}")
    assert refused(path).startswith(f"{path}: unknown section 3; did you mean")


def test_a_key_twice_in_one_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "train:\n  steps: 1\n  micro_batch_size: 1\n  steps: 2\n")
    assert refused(path) == f"{path}: key 'steps' stands twice, again in line 4; keep one"
    path = write(tmp_path / "r.yaml", "train: {steps: 1}\nlog: {every: 1}\ntrain: {}\n")
    assert "key 'train' stands twice, again in line 3" in refused(path)


def test_a_key_twice_on_the_command_line_is_refused() -> None:
    message = refused(None, "train.steps=1", "train.steps=2")
    assert message == "the command line gives train.steps twice; keep one"
    doubled = ["parallel.exchange.L=state", "parallel.exchange.L=all_to_all"]
    assert refused(None, *doubled).startswith("the command line gives parallel.exchange.L twice")


def test_a_part_of_a_section_in_file_and_on_the_command_line(tmp_path: Path) -> None:
    low = "parallel: {context: 2, exchange: {L: all_to_all, S: all_to_all}}"
    write(tmp_path / "low.yaml", low)
    run = write(
        tmp_path / "r.yaml", "include: [low.yaml]\nparallel: {exchange: {A: all_gather, S: ''}}"
    )
    config = load_config(run, ["parallel.exchange.M=all_to_all", "parallel.exchange.L=state"])
    expected = ExchangeSection(S="", M="all_to_all", L="state", A="all_gather")
    assert config.parallel.exchange == expected
    assert config.parallel.context == 2
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("parallel: {exchange: halo}", "section 'parallel.exchange' must hold key: value pairs"),
        ("parallel: {exchange: }", "section 'parallel.exchange' must hold key: value pairs"),
        ("parallel: {exchange: {Q: x}}", "unknown key parallel.exchange.Q; did you mean parallel."),
        ("parallel: {exchange: {3: x}}", "unknown key parallel.exchange.3; did you mean parallel."),
        ("parallel: {exchange: {S: null}}", "parallel.exchange.S"),
        ("parallel: {exchange: {S: [halo]}}", "parallel.exchange.S"),
        ("parallel: {exchange: {S: {a: b}}}", "unknown key parallel.exchange.S.a; did you mean"),
        (
            "parallel:\n  exchange:\n    S: halo\n    S: halo",
            "key 'S' stands twice, again in line 4",
        ),
    ],
)
def test_a_malformed_part_of_a_section_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path / "r.yaml", text)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert sentence in message


def test_a_part_given_as_a_value_is_refused() -> None:
    message = refused(None, "parallel.exchange.L=state", "parallel.exchange=state")
    assert message == ("the command line: section 'parallel.exchange' must hold key: value pairs")


@pytest.mark.parametrize("override", ["train.steps", "steps=3", "=3", "--steps=3"])
def test_an_override_without_section_key_or_value_is_refused(override: str) -> None:
    assert refused(None, override) == f"{override!r} is not an override; write section.key=value"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.steps=many", "train.steps"),
        ("train.steps=1.5", "train.steps"),
        ("train.steps=null", "train.steps"),
        ("optim.lr=fast", "optim.lr"),
        ("parallel.sequence=perhaps", "parallel.sequence"),
    ],
)
def test_an_ill_typed_value_names_the_key(override: str, key: str) -> None:
    message = refused(None, override)
    assert key in message
    assert override.partition("=")[2] in message


@pytest.mark.parametrize("value", ["null", "[1, 2]", "{a: 1}", "many"])
def test_an_ill_typed_value_of_a_file_names_file_and_key(tmp_path: Path, value: str) -> None:
    path = write(tmp_path / "r.yaml", f"train: {{steps: {value}}}")
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert "train.steps" in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1", "a configuration is a mapping of sections"),
        ("word", "a configuration is a mapping of sections"),
        ("train: 3", "section 'train' must hold key: value pairs"),
        ("train:", "section 'train' must hold key: value pairs"),
        ("train: {steps: 3", "not valid YAML"),
        ("a: *b", "not valid YAML"),
        ("include: other.yaml", "include must be a list of files"),
        ("include: [3]", "include must be a list of files"),
        ("include: [absent.yaml]", "absent.yaml: no such configuration file"),
        ("? [a, b]\n: 1", "not valid YAML"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refused(write(tmp_path / "r.yaml", text))


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00train")
    assert "not valid YAML" in refused(path)
    assert "no such configuration file" in refused(tmp_path / "absent.yaml")
    assert "no such configuration file" in refused(tmp_path)


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "r.yaml", "# nothing\n")) == Config()


def test_broken_rules_pass_through_loading() -> None:
    assert refused(None, "train.steps=0") == "train.steps must be 1 or more"
    assert "unknown sign 'X'" in refused(None, "model.pattern=SX")


def test_save_and_load_give_an_equal_configuration(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "model.pattern=[S L]2 A",
            "optim.lr=0.00012345678901234567",
            "run.output_dir=runs/é {x}: #1",
            "data.valid=",
            "parallel.tensor=2",
            "parallel.sequence=true",
            "checkpoint.resume=none",
            "parallel.recompute=SL",
            "parallel.exchange.L=all_to_all",
        ],
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_every_run_of_the_repository_loads_and_survives_saving(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_valid_keys_are_those_of_the_sections() -> None:
    keys = valid_keys()
    assert {"run.output_dir", "model.pattern", "parallel.exchange.L", "log.every"} <= set(keys)
    assert "parallel.exchange" not in keys
    values = config_dict(Config())
    parts = len(values["parallel"].pop("exchange"))
    assert len(keys) == len(set(keys)) == sum(map(len, values.values())) + parts


def test_sections_are_frozen_and_small() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 3  # type: ignore[misc]
    for section in dataclasses.fields(config):
        if section.name != "model":
            assert len(dataclasses.fields(getattr(config, section.name))) <= 20


def test_configuration_needs_neither_torch_nor_numpy() -> None:
    program = """
import sys
from megatron_hyena.config import check_layout, load_config
check_layout(load_config("configs/run/quickstart.yaml"), 2)
assert not {"torch", "numpy", "megatron", "deepspeed"} & set(sys.modules), "heavy import"
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, timeout=60)
