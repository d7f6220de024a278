"""Frozen sections of a configuration from YAML: defaults <- files <- dotted overrides, checked.

A YAML file may name fragments to start from, relative to itself:

    include: [../model/tiny.yaml, ../parallel/tp2.yaml]
    train: {steps: 100}

Later wins: the fragments in the order of the list, then the file that includes them, then the
command line. One key twice in one file, or twice on the command line, is an error, and so is an
unknown key. `schema` is everywhere a dataclass of sections that can be made without arguments; a
field such as `from_`, which Python keeps for itself without the underscore, is written `from`.
"""

from __future__ import annotations

import dataclasses
import difflib
import keyword
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_hyena.errors import UserError

Sections = TypeVar("Sections")
Source = tuple[str, dict[str, Any]]
"""Where values come from, for messages, and the values as YAML holds them."""


def load_sections(
    schema: type[Sections], path: str | Path | None, overrides: Iterable[str], examples: str
) -> Sections:
    """Read a configuration of `schema` from a YAML file (None: its defaults) and overrides.

    `overrides` are `section.key=value`, or `section.part.key=value`; the text is read as the key's
    type, a list as `[a, b]`. `examples` is a folder that a missing file's message points to.
    Raises UserError: missing file, bad YAML, unknown, doubled or ill-typed key, broken rule.
    """
    sources = [] if path is None else list(_fragments(Path(path), examples))
    return merge_sections(
        schema, [*sources, ("the command line", _parse_overrides(schema, overrides))]
    )


def sections_in(path: str | Path, examples: str) -> set[str]:
    """Names of the sections that a YAML file and what it includes give; UserError as above."""
    return {name for _, values in _fragments(Path(path), examples) for name in values}


def merge_sections(schema: type[Sections], sources: Iterable[Source]) -> Sections:
    """The defaults of `schema` under all `sources`, the last on top; raises UserError as above."""
    merged: DictConfig = OmegaConf.structured(schema)
    known = plain_values(schema())
    for source, values in sources:
        _check_keys(values, known, source, keys_of(schema))
        try:
            merged = OmegaConf.merge(merged, _as_fields(values))  # type: ignore[assignment]
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_first_line(error)} (key {error.full_key})") from error
    try:
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except UserError:
        raise
    except OmegaConfBaseException as error:
        cause = error.__cause__
        raise (cause if isinstance(cause, UserError) else UserError(_first_line(error))) from error


def plain_values(section: Any) -> dict[str, Any]:
    """A section's values (and its parts') as JSON and YAML give them back: tuples are lists."""

    def listed(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {_as_key(name): list(v) if isinstance(v, tuple) else v for name, v in items}

    return dataclasses.asdict(section, dict_factory=listed)


def _as_key(field: str) -> str:
    bare = field.removesuffix("_")
    return bare if keyword.iskeyword(bare) else field


def _as_fields(values: Any) -> Any:
    """Values under the names of their fields, which are no words of Python."""
    if isinstance(values, list):
        return [_as_fields(value) for value in values]
    if not isinstance(values, dict):
        return values
    return {
        f"{key}_" if keyword.iskeyword(str(key)) else key: _as_fields(value)
        for key, value in values.items()
    }


def keys_of(schema: type[Any]) -> list[str]:
    """Every `section.key` of `schema`, and `section.part.key` where a section has parts."""
    return list(_leaves(plain_values(schema())))


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _fragments(path: Path, examples: str, seen: tuple[Path, ...] = ()) -> Iterator[Source]:
    if path in seen:
        raise UserError(f"{path}: includes itself; remove the circle of include lines")
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file; see {examples} for some")
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, Loader=_UniqueKeyLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections, such as 'train:'")
    includes = values.pop("include", [])
    if not isinstance(includes, list) or not all(isinstance(name, str) for name in includes):
        raise UserError(f"{path}: include must be a list of files, such as [../model/tiny.yaml]")
    for include in includes:
        yield from _fragments((path.parent / include).resolve(), examples, (*seen, path))
    yield str(path), values


def _parse_overrides(schema: type[Any], overrides: Iterable[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    known, seen, valid = plain_values(schema()), set(), keys_of(schema)
    for item in overrides:
        key, equals, text = item.partition("=")
        *sections, name = key.split(".")
        if not (equals and sections):
            raise UserError(f"{item!r} is not an override; write section.key=value")
        if key in seen:
            raise UserError(f"the command line gives {key} twice; keep one")
        seen.add(key)
        nested: dict[str, Any] = {name: text}
        for section in reversed(sections):
            nested = {section: nested}
        _check_keys(nested, known, "the command line", valid)  # so that `name` is a key of `inner`
        inner, defaults = values, known
        for section in sections:
            inner, defaults = inner.setdefault(section, {}), defaults[section]
        inner[name] = _items(text) if isinstance(defaults[name], list) else text
    return values


def _items(text: str) -> list[str]:
    """`[a, b]` or `a,b`."""
    inside = text.strip().removeprefix("[").removesuffix("]")
    return [item.strip(" \"'") for item in inside.split(",")] if inside.strip() else []


def _check_keys(
    values: dict[str, Any], known: dict[str, Any], source: str, valid: list[str], prefix: str = ""
) -> None:
    """Refuse what of `values` is not in `known`, and a section without keys."""
    for name, content in values.items():
        key = f"{prefix}{name}"
        if name not in known and not prefix:
            nearest = _nearest(key, sorted(known))
            raise UserError(f"{source}: unknown section {name!r}{nearest}")
        if name not in known:
            wanted = next(_leaves({key: content}), key)
            raise UserError(f"{source}: unknown key {wanted}{_nearest(wanted, valid)}")
        if isinstance(known[name], dict):
            if not isinstance(content, dict):
                raise UserError(f"{source}: section {key!r} must hold key: value pairs")
            _check_keys(content, known[name], source, valid, f"{key}.")
        elif isinstance(content, dict):
            _check_keys(content, {}, source, valid, f"{key}.")


def _nearest(key: str, valid: list[str]) -> str:
    found = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    return f"; did you mean {found[0]}?" if found else ""


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with one key twice."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if key in seen:
            raise UserError(
                f"{key_node.start_mark.name}: key {key!r} stands twice, "
                f"again in line {key_node.start_mark.line + 1}; keep one"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
