"""The habits of the house, checked: budgets, names, docstrings, and imports that go one way."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("megatron_hyena", "pretrain", "tools", "launch")
FOLDERS = (*PACKAGES, "benchmarks", "examples", "tests")
SOURCES = sorted(p for folder in FOLDERS for p in (REPOSITORY / folder).rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION, MOST_FIELDS = 400, 80, 20
FORBIDDEN_NAMES = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
# Written in two pieces so that this file does not find itself.
LEFT_OPEN = re.compile("|".join((r"\bTO" "DO\b", r"\bFIX" "ME\b", r"\bX" r"XX\b")))


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(path: Path) -> Iterator[ast.AST]:
    return ast.walk(parsed(path))


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 80


def test_files_are_short() -> None:
    lengths = {named(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCES}
    assert not {name: n for name, n in lengths.items() if n > LONGEST_FILE}


def test_functions_are_short() -> None:
    found = {
        f"{named(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path in SOURCES
        for node in definitions(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    assert not {name: n for name, n in found.items() if n > LONGEST_FUNCTION}


def test_every_module_says_what_it_is_for() -> None:
    assert not [named(path) for path in SOURCES if not ast.get_docstring(parsed(path))]


def test_public_functions_and_classes_of_the_library_are_described() -> None:
    silent = [
        f"{named(path)}:{node.lineno} {node.name}"
        for path in SOURCES
        if named(path).startswith(PACKAGES)
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert not [named(p) for p in SOURCES if p.name in FORBIDDEN_NAMES]


def test_test_files_have_unique_names() -> None:
    names = [p.name for p in SOURCES if p.name.startswith("test_")]
    assert len(names) == len(set(names))


def test_nothing_is_left_open() -> None:
    assert not [named(p) for p in SOURCES if LEFT_OPEN.search(p.read_text(encoding="utf-8"))]


def test_no_exception_is_swallowed_in_silence() -> None:
    """No bare `except:`, and no `except Exception` whose whole answer is `pass`."""
    found = [
        f"{named(path)}:{node.lineno}"
        for path in SOURCES
        for node in definitions(path)
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (
                isinstance(node.type, ast.Name)
                and node.type.id in ("Exception", "BaseException")
                and all(isinstance(line, ast.Pass) for line in node.body)
            )
        )
    ]
    assert not found


PLANTED = {
    "ops/fir.py": ("import megatron_hyena.layers.norm", "The rooms of the model"),
    "formats/fasta.py": ("import megatron_hyena.observe.metrics", "The rooms of the data"),
    "config/pattern.py": (
        "import megatron_hyena.data.alphabet",
        "The model knows neither data nor process",
    ),
    "observe/metrics.py": (
        "import megatron_hyena.model.count",
        "Data, baselines and figures know nothing of the model",
    ),
    "engine/groups.py": ("import megatron_hyena.model.count", "The engine trains what it is given"),
    "engine/schedule.py": ("import megatron.core", "Only parallel imports Megatron-core"),
    "parallel/mesh.py": ("import deepspeed", "Only engine imports DeepSpeed"),
    "model/count.py": ("import deepspeed", "The dense model and the offline programs reach"),
    "corpus/splits.py": ("import torch", "Configuration, data and baselines start without torch"),
    "config/sections.py": ("import numpy", "Configuration needs no numpy"),
    "layers/mlp.py": ("import pretrain.train", "The library knows no program"),
    "../tools/make_shards.py": ("import launch.submit", "Programs do not import each other"),
}


def contracts(folder: Path) -> dict[str, bool]:
    """Contract -> whether it is kept, from `lint-imports` run in a copy of the repository."""
    program = "from importlinter.cli import lint_imports_command as run; run()"
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    result = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = re.findall(r"^(.+?) (KEPT|BROKEN)\b", result.stdout, re.MULTILINE)
    assert lines, result.stdout + result.stderr
    found = {name: verdict == "KEPT" for name, verdict in lines}
    assert (result.returncode == 0) == all(found.values())
    return found


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_one_way(copied: Path) -> None:
    found = contracts(copied)
    assert len(found) == len(PLANTED)
    assert all(found.values()), found


def test_each_import_contract_notices_a_planted_violation(copied: Path) -> None:
    for name, (line, _) in PLANTED.items():
        path = copied / "megatron_hyena" / name
        path.write_text(path.read_text() + f"\n{line}\n")
    broken = [name for name, kept in contracts(copied).items() if not kept]
    for _, contract in PLANTED.values():
        assert any(name.startswith(contract) for name in broken), f"{contract}: not noticed"
