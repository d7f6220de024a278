"""What a format cannot hold is an error that names it, or is listed when it was allowed by name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_hyena.errors import UserError

LOSSY = "lossy.json"
NAMES = {
    "activation": "the MLP's gate activation becomes one that the format has",
    "biases": "biases of projections and featurizers are left out",
    "complex_poles": "the imaginary parts of the modes of L are left out",
    "heads": "heads for classes and numbers are left out",
    "inv_freq": "stored RoPE frequencies are replaced by those of the nearest base",
    "merging": "merged stages are left out; their blocks see every position",
    "norm_eps": "eps moves into or out of the root of RMSNorm",
    "replicas": "the first tensor rank's copy is taken",
    "rope_scaling": "positions are not divided before RoPE",
    "se_skip": "the skip of S is left out",
    "tie_embeddings": "the head's matrix of its own is left out",
    "type_embedding": "the vectors for the type of sequence are left out",
    "unused": "tensors that have no place are left out",
    "vocabulary": "rows are cut from, or rows of zeros added to, embedding and head",
    "window": "W becomes A, which sees every earlier position",
}
"""What `--allow-lossy` may name, and what then happens."""


@dataclass(frozen=True)
class Loss:
    """One thing that the way loses: its name in `NAMES`, and what it is, with setting and fix."""

    name: str
    what: str


class Losses:
    """Collects what a conversion would lose; `check` refuses what was not allowed.

    Args:
        target: the format, for messages.
        allowed: names of `--allow-lossy`.

    Raises:
        UserError: a name that is none of `NAMES`.
    """

    def __init__(self, target: str, allowed: Iterable[str] = ()) -> None:
        self.target, self.allowed = target, frozenset(allowed)
        self.found: list[Loss] = []
        self.told: list[str] = []
        for name in sorted(self.allowed - NAMES.keys()):
            near = difflib.get_close_matches(name, NAMES, n=1)
            raise UserError(
                f"--allow-lossy {name!r} is nothing that can be lost; "
                + (f"did you mean {near[0]!r}?" if near else f"use any of {', '.join(NAMES)}")
            )

    def add(self, name: str, what: str) -> None:
        """`what` would be lost: a phrase with the setting or tensor, and its fix."""
        assert name in NAMES, name
        self.found.append(Loss(name, what))

    def tell(self, what: str) -> None:
        """Something left out that the model does not need; the user is told."""
        self.told.append(what)

    def check(self) -> None:
        """Raise one `UserError` that names everything found and not allowed."""
        refused = [loss for loss in self.found if loss.name not in self.allowed]
        if not refused:
            return
        names = ",".join(sorted(self.allowed | {loss.name for loss in refused}))
        raise UserError(
            f"{self.target} cannot hold {'; nor '.join(loss.what for loss in refused)}; "
            f"or lose it knowingly by --allow-lossy {names}"
        )

    def lines(self) -> list[str]:
        """What was left out or lost with leave, one line each."""
        lost = [f"lost ({loss.name}): {loss.what}; {NAMES[loss.name]}" for loss in self.found]
        return self.told + lost

    def write(self, path: Path) -> None:
        """Write what was lost to `path`; remove what an earlier conversion left there."""
        if not self.found:
            path.unlink(missing_ok=True)
            return
        listed = [{"name": loss.name, "what": loss.what} for loss in self.found]
        text = json.dumps({"format": self.target, "lost": listed}, indent=2) + "\n"
        path.write_text(text, encoding="utf-8")


def some_of(names: Iterable[str], most: int = 6) -> str:
    """Names for a message: all of a few, the first of many and how many they are."""
    listed = sorted(names)
    more = f" … ({len(listed)} in all)" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
