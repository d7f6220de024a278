"""What is embedded, and how."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_hyena.errors import UserError

CHOICES = {
    "per": ("base", "chunk", "sequence"),
    "pool": ("mean", "last"),
    "dtype": ("float16", "float32", "float64"),
}


@dataclass(frozen=True)
class EmbedOptions:
    """What decides the numbers, and how they are stored.

    Attributes:
        per: one state per `base`, per `chunk` of bases or per `sequence`.
        chunk: bases of a chunk; the last of a sequence may be shorter.
        layer: see `model.states`; -1 is the final one.
        pool: of a chunk or sequence, the `mean` over its bases or the state at its `last`.
        dtype: stored; `float64` is computed in double precision, the others in single.
        window: read passes of this many bases, which overlap by half; 0 reads with carried state.
        piece: bases read at a time with carried state; no number depends on it.
        without_tracks: embed by a model that reads tracks, such as conservation, without them.
        device: of the model, as torch names it.
    """

    per: str = "base"
    chunk: int = 128
    layer: str | int = "final"
    pool: str = "mean"
    dtype: str = "float32"
    window: int = 0
    piece: int = 8192
    without_tracks: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                *others, last = choices
                raise UserError(
                    f"--{name} {getattr(self, name)!r}: use {', '.join(others)} or {last}"
                )
        for name in ("chunk", "piece"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: give 1 or more")
        if self.window < 0:
            raise UserError(f"--window {self.window}: give 1 or more, or 0 for none")

    @property
    def bases(self) -> int | None:
        """Bases of a row; None for the whole sequence."""
        return {"base": 1, "chunk": self.chunk, "sequence": None}[self.per]

    def rows(self, length: int) -> int:
        """Rows of a sequence of `length` bases."""
        return 1 if self.bases is None else -(-length // self.bases)
