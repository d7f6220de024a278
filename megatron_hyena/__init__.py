"""megatron-hyena: pretraining of genome language models with striped Hyena and attention.

Everything but the configuration is loaded on first use, so that configuration and tools start
without torch. `docs/seeds.md` says what each of the names is.
"""

from __future__ import annotations

import importlib
from typing import Any

from megatron_hyena.config.model import HyenaGLTConfig

__version__ = "0.1.0"
_NAMES = {
    "megatron_hyena.compat.adaptation": ("fine_tune_hyena_for_task",),
    "megatron_hyena.compat.blocks": (
        *("FeedForward", "HyenaDynamicLayer", "HyenaGLTEmbedding", "ResidualHyenaLayer"),
        "RotaryPositionalEmbedding",
    ),
    "megatron_hyena.compat.configs": (
        *("HybridAttentionHyenaConfig", "create_hybrid_model"),
        *("optimize_for_sequence_length", "recompute_for_sequence_length"),
    ),
    "megatron_hyena.compat.long_sequences": (
        *("combine_chunk_outputs", "process_long_sequence_efficiently"),
    ),
    "megatron_hyena.compat.memory": ("estimate_memory_usage",),
    "megatron_hyena.compat.filters": ("GenomicHyenaFilter", "HyenaFilter"),
    "megatron_hyena.compat.merging": ("AdaptiveMergingLayer", "DynamicMergingLayer"),
    "megatron_hyena.compat.operators": (
        *("GenomicHyenaOperator", "HyenaBlock", "HyenaOperator", "StableHyenaOperator"),
        *("StripedHyenaOperator", "StrippedHyenaOperator"),
    ),
    "megatron_hyena.data.tokenizer": ("GenomicTokenizer",),
    "megatron_hyena.generation.decoder": ("Decoder",),
    "megatron_hyena.generation.writing": ("generate",),
    "megatron_hyena.layers.filters": ("LongFilter", "register_hyena_filter"),
    "megatron_hyena.model.heads": (
        *("RegressionHead", "SequenceClassificationHead", "TokenClassificationHead"),
    ),
    "megatron_hyena.model.multitask": ("MultiTaskHyenaGLT",),
    "megatron_hyena.model.stream": ("Stream",),
    "megatron_hyena.observe.monitor": ("HyenaPerformanceMonitor",),
}
"""Public names by the module that holds them."""
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}
__all__ = ["HyenaGLT", "HyenaGLTConfig", "HyenaGLTModel", "__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in ("HyenaGLT", "HyenaGLTModel"):
        from megatron_hyena.model.hyena_glt import HyenaGLT

        return HyenaGLT
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
