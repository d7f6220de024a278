"""Tracks: one number per base beside the bases, by name and kind; `corpus.tracks` writes them.

A track is `float32`, NaN where nothing is known (conservation), or `bool` or `uint8` (boundaries,
of one merged stage or of so many that open together). What windows bring of them is chosen by
`data.tracks`; one more, `type`, is not stored but told by the store's sequence type. The track
`features` holds the labels of the annotation: bit i of a byte tells of class i, and the index of
the shards says what the classes are.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_hyena.data.store import GenomeStore
from megatron_hyena.errors import UserError

Values = npt.NDArray[Any]
"""[n] values of a track, of one of `DTYPES`."""

TYPE = "type"
"""The track of `SequenceType` numbers, int64: known without being stored."""
BOUNDARIES = "boundaries"
"""Where chunks open in the order of reading: of one strand, and meaningless on the other."""
FEATURES = "features"
"""Labels, uint8 flags: of each base what the annotation says that it belongs to."""
STRANDED = (1, 2)
"""The flags of `FEATURES` that mean the given strand and the other one: coding sequence."""
DTYPES = {kind.name: kind for kind in map(np.dtype, ("<f4", "bool", "uint8"))}
"""What a stored track may hold, by the name that is written in an index."""

_RESERVED = frozenset((TYPE, FEATURES, "bases", "json"))
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def check_track_name(name: str) -> None:
    """Raise UserError for a name that a stored track may not have."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name of a track; use small letters, digits and underscores"
        )
    if name in _RESERVED:
        raise UserError(f"a track may not be named {name!r}, which means something else; rename it")


def turned(name: str, values: Values) -> Values:
    """The values [n] of a track as the other strand has them, in the order of its bases.

    Flags of one strand become those of the other; all else is of the base, whatever the strand.
    """
    values = values[::-1]
    if name != FEATURES:
        return values
    here, there = (np.uint8(flag) for flag in STRANDED)
    rest = values & ~(here | there)
    return rest | np.where(values & here, there, 0) | np.where(values & there, here, 0)


def unknown_values(dtype: np.dtype[Any], length: int) -> Values:
    """[length] values that say nothing: NaN, or 0."""
    return np.full(length, np.nan if dtype.kind == "f" else 0, dtype=dtype)


def stored_dtype(store: GenomeStore, name: str) -> str:
    """The name in `DTYPES` of what the store's track holds; raises UserError for other kinds."""
    dtype = store.track(name).array.dtype.name
    if dtype not in DTYPES:
        raise UserError(
            f"{store.path}: the track {name!r} holds {dtype}, not {', '.join(DTYPES)}; "
            "write it anew"
        )
    return dtype
