"""The reference page is what the sections say, and every field says something."""

from __future__ import annotations

import json
from typing import Any

import pytest

from megatron_hyena.config import Config
from megatron_hyena.corpus.options import CorpusOptions
from megatron_hyena.yaml_sections import keys_of, plain_values
from tools import config_reference


def test_the_page_is_current() -> None:
    assert config_reference.main(["--check"]) == 0, "run make docs"


@pytest.mark.parametrize("page", ["run", "corpus"])
def test_every_key_is_on_the_page_with_its_default_and_its_meaning(page: str) -> None:
    text = config_reference.render() if page == "run" else config_reference.render_corpus()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    schema: type[Any] = Config if page == "run" else CorpusOptions
    assert [row[0].strip("`") for row in rows] == keys_of(schema)
    values = plain_values(schema())
    for key, kind, default, meaning in rows:
        value: Any = values
        for name in key.strip("`").split("."):
            value = value[name]
        assert kind == type(value).__name__
        assert json.loads(default.strip("`")) == value
        assert len(meaning) > 10, f"{key} has no string under it"
        assert meaning.rstrip("`)").endswith("."), key


def test_an_out_of_date_page_is_noticed(tmp_path, monkeypatch, capsys) -> None:
    page = tmp_path / "configuration.md"
    monkeypatch.setattr(config_reference, "PAGE", page)
    assert config_reference.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert config_reference.main([]) == 0
    assert config_reference.main(["--check"]) == 0
    page.write_text(page.read_text() + "more\n")
    assert config_reference.main(["--check"]) == 1
