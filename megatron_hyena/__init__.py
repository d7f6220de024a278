"""megatron-hyena: pretraining of genome language models with striped Hyena and attention.

What needs torch is loaded on first use, so that configuration and tools start without torch.
"""

from __future__ import annotations

import importlib
from typing import Any

from megatron_hyena.config.model import HyenaGLTConfig

__version__ = "0.1.0"
_LAYERS = {
    "GenomicHyenaFilter": "filters",
    "GenomicHyenaOperator": "genomic",
    "HyenaFilter": "hyena_order",
    "HyenaOperator": "hyena_order",
    "LongFilter": "filters",
    "register_hyena_filter": "filters",
}
__all__ = ["HyenaGLT", "HyenaGLTConfig", "__version__", *_LAYERS]


def __getattr__(name: str) -> Any:
    if name == "HyenaGLT":
        from megatron_hyena.model.hyena_glt import HyenaGLT

        return HyenaGLT
    if name in _LAYERS:
        return getattr(importlib.import_module(f"megatron_hyena.layers.{_LAYERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
