"""Progress bars for the long parts, and lines that do not tear them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T] | None = None,
    *,
    description: str,
    total: float | None = None,
    unit: str = "it",
    initial: float = 0,
    enabled: bool = True,
) -> tqdm[T]:
    """A bar on stderr around `items`, or one to `update()` by hand; use it as a context manager.

    Large counts are shortened (1.2M). Nothing is drawn where stderr is no terminal, so log files
    stay clean, nor with `enabled=False` (all ranks but one). `initial` counts what an earlier run
    did.
    """
    return tqdm(
        items,
        desc=description,
        total=total,
        unit=unit,
        unit_scale=total is not None and total >= 100_000,
        initial=initial,
        disable=None if enabled else True,
        dynamic_ncols=True,
        mininterval=0.2,
    )


def write_line(text: str) -> None:
    """Prints one line to stdout at once; bars on screen are taken down and redrawn below it."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()
