"""Write `docs/configuration.md` from the strings under the configuration's fields.

python -m tools.config_reference [--check]
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "configuration.md"
SOURCES = ("sections.py", "model.py")
HEAD = """# Configuration

<!-- Written by `python -m tools.config_reference` from megatron_hyena/config; do not edit. -->

A run is described by a YAML file and, after it, overrides of the form `section.key=value`:

    python -m pretrain.train configs/run/quickstart.yaml train.steps=100 optim.lr=2e-3

A file may start from fragments, named relative to itself:
`include: [../model/tiny.yaml, ../parallel/tp2.yaml]`. Later wins: fragments in their order, then
the file, then the command line. An unknown key is an error, and so is one key twice in one file.
`--dry-run` prints the resolved configuration and what the run would cost."""


def main(argv: list[str] | None = None) -> int:
    """Write the page, or with `--check` only compare; 1 if it is out of date."""
    parser = argparse.ArgumentParser(
        prog="tools.config_reference", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    arguments = parser.parse_args(argv)
    text = render()
    if arguments.check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE} is {'current' if current else 'out of date; run make docs'}")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


def render() -> str:
    """The page: one table for each section of `Config`, in its order; parts in their section's."""
    classes = _classes()
    parts = [HEAD]
    for section in _fields(classes["Config"]):
        definition = classes[section.type]
        parts.append(f"\n## {section.name}\n\n{ast.get_docstring(definition)}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        parts += _rows(definition, section.name, classes)
    return "\n".join(parts) + "\n"


def _rows(definition: ast.ClassDef, prefix: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    rows = []
    for field in _fields(definition):
        key = f"{prefix}.{field.name}"
        if field.type in classes:
            rows += _rows(classes[field.type], key, classes)
        else:
            rows.append(f"| `{key}` | {field.type} | `{field.default}` | {field.meaning} |")
    return rows


class Field:
    """One annotated name of a section, with its default as written and the string under it."""

    def __init__(self, line: ast.AnnAssign, following: ast.stmt | None) -> None:
        assert isinstance(line.target, ast.Name)
        self.name, self.type = line.target.id, ast.unparse(line.annotation)
        if self.type.startswith("tuple["):
            self.type = "list"  # as it is written in YAML
        self.default = ""
        if line.value is not None and not isinstance(line.value, ast.Call):
            self.default = json.dumps(ast.literal_eval(line.value))
        described = following.value if isinstance(following, ast.Expr) else None
        text = described.value if isinstance(described, ast.Constant) else ""
        self.meaning = " ".join(str(text).split()).replace("|", "\\|")


def _classes() -> dict[str, ast.ClassDef]:
    folder = REPOSITORY / "megatron_hyena" / "config"
    trees = [ast.parse((folder / name).read_text(encoding="utf-8")) for name in SOURCES]
    return {n.name: n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)}


def _fields(definition: ast.ClassDef) -> list[Field]:
    body = [*definition.body, None]
    pairs = zip(definition.body, body[1:], strict=True)
    return [Field(line, after) for line, after in pairs if isinstance(line, ast.AnnAssign)]


if __name__ == "__main__":
    sys.exit(main())
