"""How variants are scored."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_hyena.errors import UserError

STRANDS = ("both", "forward")
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class ScoreOptions:
    """What decides a score, and how the work is done.

    Attributes:
        window: bases of the longest window; 0 takes the run's `data.sequence_length`.
        strands: `both` (the mean of the two) or `forward`.
        batch_tokens: bases of a batch.
        max_mismatch: highest share of records whose REF is not what the reference has.
        dtype: of the model's arithmetic, `float32` or `float64`.
        part: records that are scored and saved together.
        without_tracks: score a model that reads tracks, such as conservation, without them.
        device: of the model, as torch names it.
    """

    window: int = 0
    strands: str = "both"
    batch_tokens: int = 16384
    max_mismatch: float = 0.01
    dtype: str = "float32"
    part: int = 1024
    without_tracks: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.window < 0 or self.window == 1:
            raise UserError(f"--window {self.window}: give 2 or more, or 0 for the run's length")
        if self.strands not in STRANDS:
            raise UserError(f"--strands {self.strands!r}: use {' or '.join(STRANDS)}")
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype {self.dtype!r}: use {' or '.join(DTYPES)}")
        if not 0 <= self.max_mismatch <= 1:
            raise UserError(f"--max-mismatch {self.max_mismatch} is no share; give 0 to 1")
        for name in ("batch_tokens", "part"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
