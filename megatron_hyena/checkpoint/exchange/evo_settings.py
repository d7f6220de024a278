"""What the YAML of Evo 1's and Evo 2's programs have in common, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_hyena.checkpoint.exchange.rope import Rope
from megatron_hyena.checkpoint.exchange.settings import Settings, inner_size
from megatron_hyena.config import HyenaGLTConfig


def read_rope(settings: Settings, base: float) -> Rope:
    """RoPE as the settings say; `base` is the program's own default."""
    scaled = settings.get("use_interpolated_rotary_pos_emb", False)
    scaling = settings.number("rotary_emb_scaling_factor", 1.0) if scaled else 1.0
    return Rope(settings.number("rotary_emb_base", base), scaling)


def read_shared(settings: Settings, rope_base: float, longest: int) -> dict[str, Any]:
    """Fields of our configuration; `rope_base` and `longest` are the program's defaults.

    Raises:
        UserError: a key is missing or no number.
    """
    rope = read_rope(settings, rope_base)
    return {
        "hidden_size": settings.whole("hidden_size"),
        "num_heads": settings.whole("num_attention_heads"),
        "ffn_hidden_size": inner_size(settings),
        "vocab_size": settings.whole("vocab_size"),
        "li_modes": settings.whole("state_size"),
        "max_sequence_length": settings.whole("max_seqlen", longest),
        "rope_base": rope.base,
        "rope_scaling": rope.scaling,
        "norm_eps": settings.number("eps"),
        "norm_eps_outside": True,
        "tie_embeddings": bool(settings.get("tie_embeddings")),
    }


def shared_keys(config: HyenaGLTConfig, signs: Mapping[str, str]) -> dict[str, Any]:
    """Keys of the YAML; `signs` are ours, by the key that lists their blocks."""
    blocks = {
        key: [n for n, found in enumerate(config.signs) if found == sign]
        for key, sign in signs.items()
    }
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_filters": config.hidden_size,
        **blocks,
        "num_layers": len(config.signs),
        "short_filter_length": 3,
        "num_attention_heads": config.num_heads,
        "eps": config.norm_eps,
        "state_size": config.li_modes,
        "rotary_emb_base": config.rope_base,
        "use_interpolated_rotary_pos_emb": config.rope_scaling != 1,
        "rotary_emb_scaling_factor": config.rope_scaling,
        "tie_embeddings": config.tie_embeddings,
        "mha_out_proj_bias": True,
        "max_seqlen": config.max_sequence_length,
    }
