"""What ids stand for that are no letters, and the names of what may stand beside them.

Bytes have two ids that no sequence holds: PAD and MASK. The compact alphabet, whose ids 0 to 3 are
all letters (`model.vocab_size=4`), has neither, so its models cannot do what needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_hyena.errors import UserError

if TYPE_CHECKING:
    from megatron_hyena.config.model import HyenaGLTConfig

PAD, MASK = 1, 2
"""The byte that fills sequences up, and the one that stands for a hidden byte."""
COMPACT = 4
"""Largest vocabulary of which every id is a letter."""
TRACKS = ("boundaries", "conservation", "type")
"""Names of the tracks that some part of a model reads."""
LABELS = ("features",)
"""Names of the tracks that a head may learn to tell: they come with a batch, and no model reads
them."""


def pad_id(config: HyenaGLTConfig) -> int | None:
    """The id that is no sequence but fills it up; None where every id is a letter."""
    return None if config.vocab_size <= COMPACT else PAD


def mask_id(config: HyenaGLTConfig) -> int | None:
    """The id that stands for a hidden byte; None where every id is a letter."""
    return None if config.vocab_size <= COMPACT else MASK


def filler_id(config: HyenaGLTConfig) -> int:
    """What a model appends to sequences that its layout does not divide; nothing reads it."""
    return pad_id(config) or 0


def check_alphabet(config: HyenaGLTConfig) -> None:
    """Refuse what needs bytes of a model whose ids are letters alone.

    Raises:
        UserError: with both values.
    """
    size = config.vocab_size
    if size > COMPACT:
        return
    if not config.causal:
        raise UserError(
            f"model.causal=false needs ids for padding and hidden bytes, and of "
            f"model.vocab_size={size} every id is a letter; use vocab_size=256 or causal=true"
        )
    if config.adaptive and config.complexity == "kmer":
        raise UserError(
            f"model.complexity=kmer counts the letters of bytes, which ids of "
            f"model.vocab_size={size} are not; use complexity=window or vocab_size=256"
        )
