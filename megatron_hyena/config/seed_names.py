"""Other names of the model section's fields: those of the two documents the model comes from.

`HyenaGLTConfig(d_model=768, n_layers=12)` means `HyenaGLTConfig(hidden_size=768,
pattern="[H]12")`: every such name is turned into fields of this project before the configuration
is made, so what is made has those fields and no others. A name that belongs elsewhere (to a head,
to a run) is refused with the place it belongs to; `docs/seeds.md` has the table.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from megatron_hyena.config.pattern import parse_pattern
from megatron_hyena.errors import UserError

RENAMED = {
    "d_model": "hidden_size",
    "sequence_length": "max_sequence_length",
    "max_seq_len": "max_sequence_length",
    "l_max": "max_sequence_length",
    "order": "hyena_order",
    "filter_order": "hyena_filter_order",
    "attention_window_size": "attention_window",
}
"""The same field under another name."""
LAYER_NAMES = (
    *("n_layers", "num_layers", "attention_layers", "hyena_layers"),
    *("use_hyena", "use_attention", "use_sparse_attention"),
)
"""Names that together say what `pattern` says."""
DEPTH = 12
"""Blocks where layers are asked for without their number, as in the tutorial's models."""
CHOICES: dict[str, tuple[Any, str]] = {
    "gradient_checkpointing": (
        False,
        "recomputation is not part of the architecture: set parallel.recompute=block of a run, or "
        "HyenaGLT(config, recompute='block')",
    ),
    "hyena_training_additions": (
        True,
        "filters always have a window, no weight decay and their own learning rate "
        "(optim.filter_lr_factor); leave the name out",
    ),
    "dropout": (
        0.0,
        "blocks of the trunk have no dropout: give it to a head, or to ResidualHyenaLayer(config, "
        "dropout=...)",
    ),
}
"""Names with one value that is always so, and what to use instead of another one."""
ELSEWHERE = {
    "num_classes": "it belongs to a head: SequenceClassificationHead(hidden_size, num_classes)",
    "task_type": "it belongs to a head: choose SequenceClassificationHead, TokenClassificationHead "
    "or RegressionHead, or give MultiTaskHyenaGLT its tasks",
    "shared_layers": "it belongs to MultiTaskHyenaGLT(config, tasks, shared_layers=...)",
    "initial_length": "it belongs to a run: see the length curriculum in docs/configuration.md",
    "custom_hyena_filter": "a class cannot be written to a file: give the name it is registered "
    "under (register_hyena_filter); that of GenomicHyenaFilter is 'genomic'",
    "base_merge_ratio": "give merge_ratio, the fraction removed, and adaptive=True",
}
"""Names that are no part of the architecture, and where they belong."""
Model = TypeVar("Model", bound=type)


def accepts_seed_names(config: Model) -> Model:
    """Class decorator: the constructor of a dataclass also takes the names above.

    The class keeps its fields; unknown names raise `UserError` with the nearest known one.
    """
    plain: Callable[..., None] = vars(config)["__init__"]
    known = [field.name for field in fields(config)]

    @functools.wraps(plain)
    def construct(self: object, *values: Any, **named: Any) -> None:
        if not named.keys() <= set(known):
            named = own_fields(named, known)
        plain(self, *values, **named)

    type.__setattr__(config, "__init__", construct)
    return config


def own_fields(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """`given` under the names of this project; see the module.

    Args:
        given: fields under either name.
        known: this project's fields of the model section.
    Raises:
        UserError: an unknown name, one that belongs elsewhere, or two that contradict.
    """
    rest = {name: value for name, value in given.items() if name not in LAYER_NAMES}
    found: dict[str, Any] = {}
    for name, value in rest.items():
        if name in known or name in RENAMED:
            _put(found, RENAMED.get(name, name), value, name)
        elif name == "custom_hyena_filter" and isinstance(value, str):
            _put(found, "hyena_filter", value, name)
        elif name in CHOICES:
            only, instead = CHOICES[name]
            if value != only:
                raise UserError(f"{name}={value!r} cannot be chosen: {instead}")
        elif name in ELSEWHERE:
            raise UserError(f"{name} is no field of the model: {ELSEWHERE[name]}")
        else:
            raise UserError(f"{name} is no field of the model{_nearest(name, known)}")
    layers = {name: value for name, value in given.items() if name in LAYER_NAMES}
    if layers:
        _set_pattern(found, layers, "attention_window_size" in given)
    return found


def layer_pattern(signs: Sequence[str], merged: bool = False) -> str:
    """The shortest pattern of `signs`; `merged`: with all but the first and last block in a stage.

    >>> layer_pattern("AHHAHHAHHAHH")
    '[AHH]4'
    >>> layer_pattern("HHHH", merged=True)
    'H([H]2)H'
    """
    if merged:
        return f"{signs[0]}({layer_pattern(signs[1:-1])}){signs[-1]}"
    text = "".join(signs)
    for size in range(1, len(text) // 2 + 1):
        if text[:size] * (len(text) // size) == text:
            return f"[{text[:size]}]{len(text) // size}"
    return text


def _put(found: dict[str, Any], name: str, value: Any, said: str) -> None:
    if name in found and found[name] != value:
        raise UserError(
            f"{name} is given twice, as {found[name]!r} and, by the name {said}, as {value!r}; "
            "keep one"
        )
    found[name] = value


def _nearest(name: str, known: Collection[str]) -> str:
    names = [*known, *RENAMED, *LAYER_NAMES, *CHOICES, *ELSEWHERE]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; the nearest is {near[0]}" if near else "; docs/configuration.md lists them"


def _set_pattern(found: dict[str, Any], layers: Mapping[str, Any], windowed: bool) -> None:
    """Turn what the names of layers say into `pattern`, in place."""
    depths = [int(layers[name]) for name in ("n_layers", "num_layers") if name in layers]
    if len(set(depths)) > 1:
        raise UserError(f"n_layers={depths[0]} and num_layers={depths[1]} contradict; keep one")
    if "pattern" in found:
        _check_pattern(found["pattern"], layers, depths)
        return
    signs = _signs(layers, depths[0] if depths else None, windowed)
    merged = found.get("merge_ratio", 0) > 0
    if merged and len(signs) < 3:
        raise UserError(
            f"merge_ratio={found['merge_ratio']} merges between the first and the last block, but "
            f"there are {len(signs)} blocks; give num_layers of 3 or more"
        )
    found["pattern"] = layer_pattern(signs, merged)


def _check_pattern(pattern: str, layers: Mapping[str, Any], depths: list[int]) -> None:
    """A pattern says all: only a number of layers that agrees with it may stand beside it."""
    others = sorted(layers.keys() - {"n_layers", "num_layers"})
    if others:
        raise UserError(
            f"pattern={pattern!r} already says which layers there are; leave out "
            f"{' and '.join(others)}"
        )
    blocks = len(parse_pattern(pattern))
    if depths[0] != blocks:
        raise UserError(
            f"num_layers={depths[0]}, but pattern={pattern!r} has {blocks} blocks; keep one"
        )


def _signs(layers: Mapping[str, Any], depth: int | None, windowed: bool) -> str:
    """One sign per block."""
    attention = "W" if layers.get("use_sparse_attention", windowed) else "A"
    if "attention_layers" in layers or "hyena_layers" in layers:
        return _listed(layers, depth, attention)
    depth = DEPTH if depth is None else depth
    if depth < 1:
        raise UserError(f"num_layers={depth} must be 1 or more")
    hyena, attends = layers.get("use_hyena", True), layers.get("use_attention", False)
    if not hyena and not attends:
        raise UserError(
            "use_hyena=False without use_attention=True leaves no layer that mixes positions; "
            "set use_attention=True"
        )
    unit = "H" * bool(hyena) + attention * bool(attends)
    return (unit * depth)[:depth]


def _listed(layers: Mapping[str, Any], depth: int | None, attention: str) -> str:
    """Signs where attention or Hyena layers are listed by number, from 0."""
    lists = {
        name: set(layers[name])
        for name in ("attention_layers", "hyena_layers")
        if layers.get(name) is not None
    }
    if depth is None:
        depth = max(set().union(*lists.values()), default=-1) + 1 if len(lists) > 1 else DEPTH
    every = set(range(depth))
    attends = lists.get("attention_layers")
    hyena = lists.get("hyena_layers", every - (attends or set()))
    attends = every - hyena if attends is None else attends
    if attends & hyena or attends | hyena != every:
        raise UserError(
            f"attention_layers={sorted(attends)} and hyena_layers={sorted(hyena)} do not share out "
            f"the blocks 0 to {depth - 1}; name each of the {depth} in one of the two"
        )
    for name, kind in (("use_attention", attends), ("use_hyena", hyena)):
        if layers.get(name) is False and kind:
            raise UserError(f"{name}=False, but its layers are {sorted(kind)}; keep one")
    return "".join(attention if number in attends else "H" for number in range(depth))
