"""Fields under other names: what they become, and what is refused with what to use instead."""

from __future__ import annotations

import dataclasses
import doctest
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_hyena import HyenaGLTConfig
from megatron_hyena.config import Config, config_of, seed_names
from megatron_hyena.config.loading import config_dict
from megatron_hyena.errors import UserError

PAGE = Path(__file__).parents[3] / "docs" / "seeds.md"
TUTORIAL: dict[str, Any] = {
    "vocab_size": 4,
    "hidden_size": 768,
    "num_layers": 12,
    "use_hyena": True,
    "hyena_order": 2,
    "hyena_filter_size": 128,
    "max_seq_len": 8192,
    "use_fft_conv": True,
    "hyena_training_additions": True,
}


def refused(**fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        HyenaGLTConfig(**fields)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_tutorials_configuration() -> None:
    assert HyenaGLTConfig(**TUTORIAL) == HyenaGLTConfig(
        pattern="[H]12",
        hidden_size=768,
        vocab_size=4,
        hyena_order=2,
        hyena_filter_size=128,
        max_sequence_length=8192,
    )


def test_it_is_still_a_frozen_dataclass_of_its_own_fields() -> None:
    config = HyenaGLTConfig(**{"d_model": 32, "num_heads": 4, "n_layers": 2})  # type: ignore[arg-type]
    assert not hasattr(config, "d_model")
    assert "d_model" not in dataclasses.asdict(config)
    assert HyenaGLTConfig(**dataclasses.asdict(config)) == config
    assert dataclasses.replace(config, hyena_order=3).hidden_size == 32
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(HyenaGLTConfig(pattern="[H]2", hidden_size=32, num_heads=4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 64  # type: ignore[misc]
    assert HyenaGLTConfig.from_seed(d_model=32, num_heads=4, n_layers=2) == config
    assert HyenaGLTConfig("[S]2", 32) == HyenaGLTConfig(pattern="[S]2", hidden_size=32)


@pytest.mark.parametrize(("name", "own"), seed_names.RENAMED.items())
def test_a_renamed_field(name: str, own: str) -> None:
    config = HyenaGLTConfig.from_seed(**{name: 16})
    assert getattr(config, own) == 16
    assert dataclasses.replace(config, **{own: getattr(HyenaGLTConfig(), own)}) == HyenaGLTConfig()
    message = refused(**{name: 16, own: 32})
    assert own in message
    assert "16" in message
    assert "32" in message
    assert HyenaGLTConfig.from_seed(**{name: 16, own: 16}) == config


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"num_layers": 5}, "[H]5"),
        ({"n_layers": 1}, "H"),
        ({"use_hyena": True}, "[H]12"),
        ({"num_layers": 12, "use_hyena": True, "use_attention": True}, "[HA]6"),
        ({"num_layers": 5, "use_attention": True}, "HAHAH"),
        ({"num_layers": 4, "use_hyena": False, "use_attention": True}, "[A]4"),
        ({"attention_layers": [0, 3, 6, 9], "hyena_layers": [1, 2, 4, 5, 7, 8, 10, 11]}, "[AHH]4"),
        ({"attention_layers": [0, 3, 6, 9], "num_layers": 12}, "[AHH]4"),
        ({"attention_layers": [0, 3, 6, 9]}, "[AHH]4"),
        ({"hyena_layers": [1], "num_layers": 3}, "AHA"),
        ({"attention_layers": [], "num_layers": 2}, "[H]2"),
        ({"attention_layers": [1], "hyena_layers": [0], "use_sparse_attention": True}, "HW"),
        ({"attention_layers": (1,), "hyena_layers": (0,), "attention_window_size": 99}, "HW"),
        (
            {"attention_layers": [1], "hyena_layers": [0], "attention_window_size": 99}
            | {"use_sparse_attention": False},
            "HA",
        ),
        ({"pattern": "[SM]3", "num_layers": 6}, "[SM]3"),
    ],
)
def test_layers_become_a_pattern(fields: dict[str, Any], pattern: str) -> None:
    config = HyenaGLTConfig(**fields)
    assert config.pattern == pattern
    assert config.attention_window == fields.get("attention_window_size", 512)


def test_lists_are_not_kept() -> None:
    """The sketch's lists were shared by all configurations made from them."""
    layers = [0]
    config = HyenaGLTConfig.from_seed(attention_layers=layers, num_layers=2)
    layers.append(1)
    assert config.pattern == "AH"


def test_merging_is_between_the_first_and_the_last_block() -> None:
    """The pattern alone: merged stages are read by the parser of patterns."""
    assert seed_names.layer_pattern("HHHHHH", merged=True) == "H([H]4)H"
    assert seed_names.layer_pattern("AHAHA", merged=True) == "A(HAH)A"
    known = ("pattern", "merge_ratio")
    found = seed_names.own_fields({"merge_ratio": 0.5, "n_layers": 4}, known)
    assert found == {"merge_ratio": 0.5, "pattern": "H([H]2)H"}
    found = seed_names.own_fields({"merge_ratio": 0.0, "n_layers": 4}, known)
    assert found["pattern"] == "[H]4"
    with pytest.raises(UserError, match="there are 2 blocks"):
        seed_names.own_fields({"merge_ratio": 0.5, "n_layers": 2}, known)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_layers": 3, "num_layers": 4}, ("n_layers=3", "num_layers=4")),
        ({"num_layers": 0}, ("num_layers=0", "1 or more")),
        ({"pattern": "[SM]2", "num_layers": 5}, ("num_layers=5", "4 blocks")),
        ({"pattern": "SM", "use_hyena": True}, ("pattern='SM'", "use_hyena")),
        ({"use_hyena": False}, ("use_attention=True",)),
        ({"attention_layers": [0, 1], "hyena_layers": [1, 2]}, ("[0, 1]", "[1, 2]", "0 to 2")),
        ({"attention_layers": [0], "hyena_layers": [2]}, ("0 to 2",)),
        ({"attention_layers": [12], "num_layers": 12}, ("[12]", "0 to 11")),
        ({"attention_layers": [-1], "num_layers": 12}, ("[-1]", "0 to 11")),
        ({"attention_layers": [0], "num_layers": 2, "use_attention": False}, ("use_attention",)),
        ({"hyena_layers": [0], "num_layers": 2, "use_hyena": False}, ("use_hyena=False", "[0]")),
    ],
)
def test_layers_that_contradict(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refused(**fields)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gradient_checkpointing": True}, ("parallel.recompute=block", "recompute='block'")),
        ({"hyena_training_additions": False}, ("optim.filter_lr_factor",)),
        ({"dropout": 0.1}, ("dropout=0.1", "head")),
        ({"num_classes": 2}, ("SequenceClassificationHead",)),
        ({"task_type": "classification"}, ("MultiTaskHyenaGLT",)),
        ({"shared_layers": 2}, ("MultiTaskHyenaGLT",)),
        ({"initial_length": 1024}, ("curriculum",)),
        ({"custom_hyena_filter": object}, ("register_hyena_filter", "'genomic'")),
        ({"hiden_size": 3}, ("hiden_size", "nearest is hidden_size")),
        ({"n_layer": 3}, ("nearest is n_layers",)),
        ({"qqqq": 3}, ("qqqq", "docs/configuration.md")),
    ],
)
def test_what_belongs_elsewhere_or_nowhere(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refused(**fields)
    for word in words:
        assert word in message


@pytest.mark.parametrize(("name", "choice"), seed_names.CHOICES.items())
def test_a_choice_that_is_always_so_may_be_said(name: str, choice: tuple[Any, str]) -> None:
    assert HyenaGLTConfig(**{name: choice[0]}) == HyenaGLTConfig()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hyena_filter_size": -1}, ("-1",)),
        ({"hyena_filter_size": 300, "max_sequence_length": 200}, ("300", "200")),
        ({"hyena_filter_size": -1, "hyena_filter": "genomic"}, ("-1",)),
        ({"use_fft_conv": False}, ("512", "not 0")),
        (
            {"use_fft_conv": False, "hyena_filter": "genomic", "hyena_filter_size": 600},
            ("512", "600"),
        ),
        ({"use_fft_conv": False, "hyena_filter_size": 513}, ("512", "513")),
    ],
)
def test_filter_sizes_that_cannot_be(fields: dict[str, Any], words: tuple[str, ...]) -> None:
    message = refused(**fields)
    for word in words:
        assert word in message


def test_a_custom_filter_by_its_name() -> None:
    config = HyenaGLTConfig.from_seed(custom_hyena_filter="genomic")
    assert config == HyenaGLTConfig(hyena_filter="genomic")
    assert "genmic" in refused(custom_hyena_filter="genmic")
    short = HyenaGLTConfig(hyena_filter="genomic", use_fft_conv=False, max_sequence_length=64)
    assert short.hyena_taps == short.bank_taps == 128
    whole = HyenaGLTConfig(hyena_filter="genomic", hyena_filter_size=9)
    assert whole.hyena_taps == whole.bank_taps == 9
    assert HyenaGLTConfig().hyena_taps == HyenaGLTConfig().max_sequence_length


def test_a_run_has_the_projects_own_names_alone() -> None:
    """In YAML there is one name for each key."""
    values = config_dict(Config())
    assert config_of(values, "a file") == Config()
    with pytest.raises(UserError, match="d_model"):
        config_of({"model": {"d_model": 32}}, "a file")


def rows_of(title: str) -> dict[str, str]:
    """First and second column of the table under `title`."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {name: row[1].strip() for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def test_the_page_names_every_field() -> None:
    rows = rows_of("Fields of the configuration")
    names = {*seed_names.RENAMED, *seed_names.LAYER_NAMES}
    names |= {*seed_names.CHOICES, *seed_names.ELSEWHERE}
    assert names <= rows.keys()
    for name, own in seed_names.RENAMED.items():
        assert f"`{own}`" in rows[name]
    fields = {field.name for field in dataclasses.fields(HyenaGLTConfig)}
    for name in rows.keys() - names:
        assert name in fields, f"{name} is on the page and not in the code"


def test_examples_of_the_documentation() -> None:
    found = doctest.testmod(seed_names)
    assert found.attempted > 0
    assert found.failed == 0
