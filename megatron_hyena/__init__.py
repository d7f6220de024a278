"""megatron-hyena: pretraining of genome language models with striped Hyena and attention.

`HyenaGLT` is loaded on first use, so that configuration and tools start without torch.
"""

from __future__ import annotations

from typing import Any

from megatron_hyena.config.model import HyenaGLTConfig

__version__ = "0.1.0"
__all__ = ["HyenaGLT", "HyenaGLTConfig", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "HyenaGLT":
        from megatron_hyena.model.hyena_glt import HyenaGLT

        return HyenaGLT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
