"""Configurations made by rule: for a length, and with attention among the Hyena layers."""

from __future__ import annotations

from typing import Any

from megatron_hyena.config.model import HyenaGLTConfig
from megatron_hyena.config.seed_names import LAYER_NAMES, layer_pattern
from megatron_hyena.errors import UserError
from megatron_hyena.model.hyena_glt import HyenaGLT

FEWEST_TAPS, MOST_TAPS, LENGTH_PER_TAP = 32, 128, 64
FFT_ABOVE, RECOMPUTE_ABOVE = 512, 4096
LONG_RANGE = 4
"""Every fourth block, the last one among them, is Hyena-LI, whose filter has no last tap: so the
size of the others' filters does not limit what the model sees."""
VOCABULARY, WIDTH, DEPTH = 4, 768, 12
SPACING = 3
"""Every third block attends, from the first."""
SAYS_LAYERS = {"pattern", *LAYER_NAMES} - {"num_layers"}


def optimize_for_sequence_length(target_length: int, **fields: Any) -> HyenaGLTConfig:
    """The tutorial's rule: filters of a 64th of the length, from 32 to 128 taps.

    1024 -> 32 taps, 4096 -> 64, 8192 -> 128, 16384 -> 128; FFT above 512 positions. See
    `recompute_for_sequence_length` for what is not part of the architecture.

    Args:
        target_length: positions of a sequence.
        fields: of `HyenaGLTConfig`, instead of the rule's (12 blocks of 768 channels, 4 letters);
            `num_layers` changes the number of blocks.
    Raises:
        UserError: a length below 32, or a field that does not exist.
    """
    if target_length < FEWEST_TAPS:
        raise UserError(
            f"target_length={target_length} is shorter than the shortest filter, {FEWEST_TAPS}"
        )
    taps = max(FEWEST_TAPS, min(MOST_TAPS, target_length // LENGTH_PER_TAP))
    depth = fields.pop("num_layers", DEPTH) if fields.keys().isdisjoint(SAYS_LAYERS) else DEPTH
    rule: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "pattern": layer_pattern(["HL"[(depth - 1 - n) % LONG_RANGE == 0] for n in range(depth)]),
        "max_sequence_length": target_length,
        "hyena_filter_size": taps,
        "use_fft_conv": target_length > FFT_ABOVE,
    }
    return HyenaGLTConfig(**(rule | HyenaGLTConfig.own_fields(fields)))


def recompute_for_sequence_length(target_length: int) -> str:
    """`block` above 4096 positions, else `none`: for `HyenaGLT(recompute=...)` or a run's
    `parallel.recompute`."""
    return "block" if target_length > RECOMPUTE_ABOVE else "none"


class HybridAttentionHyenaConfig(HyenaGLTConfig):
    """A configuration whose every third block attends, the others being Hyena.

    Fields, under any of their names, replace the defaults: 12 blocks, attention in 0, 3, 6, ...,
    to a window of 512. What is made is a `HyenaGLTConfig` and saves as one.
    """

    def __init__(self, **fields: Any) -> None:
        if "pattern" not in fields:
            if not {"num_layers", "n_layers"} & fields.keys():
                fields["num_layers"] = DEPTH
            if not {"attention_layers", "hyena_layers"} & fields.keys():
                depth = fields.get("num_layers", fields.get("n_layers"))
                fields["attention_layers"] = range(0, int(depth or 0), SPACING)
            fields.setdefault("use_sparse_attention", True)
            if "attention_window" not in fields:
                fields.setdefault("attention_window_size", HyenaGLTConfig.attention_window)
        super().__init__(**fields)


def create_hybrid_model(**fields: Any) -> HyenaGLT:
    """A `HyenaGLT` of `HybridAttentionHyenaConfig(**fields)`."""
    return HyenaGLT(HybridAttentionHyenaConfig(**fields))
