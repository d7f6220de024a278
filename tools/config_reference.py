"""Write `docs/configuration.md`, `corpus_options.md` and `finetune_options.md` from the strings
under their fields.

python -m tools.config_reference [--check]
"""

from __future__ import annotations

import argparse
import ast
import json
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "configuration.md"
CORPUS_PAGE = REPOSITORY / "docs" / "corpus_options.md"
SOURCES = ("config/sections.py", "config/model.py")
FINETUNE_PAGE = REPOSITORY / "docs" / "finetune_options.md"
FINETUNE_SOURCES = ("config/finetune.py",)
CORPUS_SOURCES = tuple(f"corpus/{n}.py" for n in ("options", "curation", "sketch", "splitting"))
_RAISES = re.compile(r" Raises UserError[^.]*\.")  # for those who read the code
HEAD = """# Configuration

<!-- Written by `python -m tools.config_reference` from megatron_hyena/config; do not edit. -->

A run is described by a YAML file and, after it, overrides of the form `section.key=value`:

    python -m pretrain.train configs/run/quickstart.yaml train.steps=100 optim.lr=2e-3

A file may start from fragments, named relative to itself:
`include: [../model/tiny.yaml, ../parallel/tp2.yaml]`. Later wins: fragments in their order, then
the file, then the command line. An unknown key is an error, and so is one key twice in one file.
`--dry-run` prints the resolved configuration and what the run would cost."""

CORPUS_HEAD = """# Options of a corpus

<!-- Written by `python -m tools.config_reference` from megatron_hyena/corpus; do not edit. -->

A corpus is described by a YAML file and overrides, as a run is (includes, too); see
[corpus.md](corpus.md):

    python -m tools.prepare_corpus configs/corpus/example.yaml splits.gap=4096 --output corpus/x"""

FINETUNE_HEAD = """# Options of fine-tuning

<!-- Written by `python -m tools.config_reference` from megatron_hyena/config; do not edit. -->

A fine-tuning run is described by a YAML file and overrides, as a run of pretraining is; see
[finetune.md](finetune.md):

    python -m pretrain.finetune configs/run/finetune_coding.yaml finetune.method=lora

`run`, `parallel`, `train`, `optim`, `checkpoint` and `log` are as in
[configuration.md](configuration.md). `tasks` is a list of sections like `task`."""


def main(argv: list[str] | None = None) -> int:
    """Write the pages, or with `--check` only compare; 1 if one is out of date."""
    parser = argparse.ArgumentParser(
        prog="tools.config_reference", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    arguments = parser.parse_args(argv)
    outdated = 0
    for page, text in (
        (PAGE, render()),
        (CORPUS_PAGE, render_corpus()),
        (FINETUNE_PAGE, render_finetune()),
    ):
        if arguments.check:
            current = page.is_file() and page.read_text(encoding="utf-8") == text
            print(f"{page} is {'current' if current else 'out of date; run make docs'}")
            outdated += not current
        else:
            page.write_text(text, encoding="utf-8")
            print(page)
    return 1 if outdated else 0


def render() -> str:
    """The page of a run: one table for each section of `Config`, in its order."""
    from megatron_hyena.config import Config, config_dict

    return _page(HEAD, "Config", SOURCES, config_dict(Config()))


def render_corpus() -> str:
    """The same of a corpus, for `CorpusOptions`."""
    from megatron_hyena.corpus.options import CorpusOptions
    from megatron_hyena.yaml_sections import plain_values

    return _page(CORPUS_HEAD, "CorpusOptions", CORPUS_SOURCES, plain_values(CorpusOptions()))


def render_finetune() -> str:
    """The same of a fine-tuning run: its own sections of `FinetuneConfig`."""
    from megatron_hyena.config.finetune import FinetuneConfig
    from megatron_hyena.yaml_sections import plain_values

    return _page(FINETUNE_HEAD, "FinetuneConfig", FINETUNE_SOURCES, plain_values(FinetuneConfig()))


def _page(head: str, root: str, sources: Sequence[str], defaults: dict[str, Any]) -> str:
    """One table for each section of the class `root` that `sources` define.

    Parts stand in their section's.
    """
    classes = _classes(sources)
    parts = [head]
    for section in _fields(classes[root]):
        if section.type not in classes:
            continue
        definition = classes[section.type]
        described = _RAISES.sub("", ast.get_docstring(definition) or "")
        parts.append(f"\n## {section.name}\n\n{described}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        parts += _rows(definition, section.name, classes, defaults[section.name])
    return "\n".join(parts) + "\n"


def _rows(
    definition: ast.ClassDef,
    prefix: str,
    classes: dict[str, ast.ClassDef],
    defaults: dict[str, Any],
) -> list[str]:
    rows = []
    for field in _fields(definition):
        key, default = f"{prefix}.{field.name}", defaults[field.name]
        if field.type in classes:
            rows += _rows(classes[field.type], key, classes, default)
        else:
            rows.append(f"| `{key}` | {field.type} | `{json.dumps(default)}` | {field.meaning} |")
    return rows


class Field:
    """One annotated name of a section and the string under it."""

    def __init__(self, line: ast.AnnAssign, following: ast.stmt | None) -> None:
        assert isinstance(line.target, ast.Name)
        name, self.type = line.target.id, ast.unparse(line.annotation)
        self.name = name.removesuffix("_") if keyword.iskeyword(name[:-1]) else name
        if self.type.startswith("tuple["):
            self.type = "list"  # as it is written in YAML
        described = following.value if isinstance(following, ast.Expr) else None
        text = described.value if isinstance(described, ast.Constant) else ""
        self.meaning = " ".join(str(text).split()).replace("|", "\\|")


def _classes(sources: Sequence[str]) -> dict[str, ast.ClassDef]:
    folder = REPOSITORY / "megatron_hyena"
    trees = [ast.parse((folder / name).read_text(encoding="utf-8")) for name in sources]
    return {n.name: n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)}


def _fields(definition: ast.ClassDef) -> list[Field]:
    body = [*definition.body, None]
    pairs = zip(definition.body, body[1:], strict=True)
    return [Field(line, after) for line, after in pairs if isinstance(line, ast.AnnAssign)]


if __name__ == "__main__":
    sys.exit(main())
